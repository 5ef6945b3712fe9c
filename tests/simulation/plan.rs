//! What a seed decides: sizes, bounds, and which faults there are (swarm testing: each seed has its
//! own mix, so that rare combinations meet).

use antiphon::engine::inbox::Bounds;
use antiphon::engine::limits::{Limits, Rate};
use antiphon::engine::rng::Rng;
use antiphon::engine::sequencer::SequencerConfig;

/// Randomness of one run.
pub struct Dice(Rng);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(Rng::new(seed ^ 0x5eed_5eed_5eed_5eed))
    }

    /// A number below `bound` (at least 1).
    pub fn below(&mut self, bound: u64) -> u64 {
        u64::from(self.0.below(bound.max(1) as u32))
    }

    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True in so many of a thousand cases.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        per_mille > 0 && self.below(1_000) < per_mille
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }
}

/// One run's shape. Chances are per mille; 0 after the healing.
#[derive(Debug, Clone)]
pub struct Plan {
    pub shards: u16,
    pub users: u64,
    pub clients: u64,
    pub rooms: u64,
    pub run_ms: u64,
    pub limits: Limits,
    pub sequencer: SequencerConfig,
    /// Time between a client's doings, ms.
    pub pause_ms: u64,
    /// Commands that a client sends in one go at most.
    pub pipeline: u64,
    /// One way over the network, ms at most.
    pub net_ms: u64,
    pub commit_ms: u64,
    pub batch_max: u64,
    pub read_ms: u64,
    /// From the core to a shard, ms at most.
    pub log_ms: u64,
    pub commit_fails: u64,
    pub commit_unknown: u64,
    pub read_fails: u64,
    pub mesh_lost: u64,
    /// A client drops its connection instead of doing something.
    pub client_drops: u64,
    /// Of those: the server does not notice.
    pub half_open: u64,
    /// A client stops reading for a while.
    pub client_stalls: u64,
    /// Bytes in flight to a client, at most.
    pub window: u64,
    /// Membership changes among what clients do.
    pub moderation: u64,
    /// Per second of the run:
    pub crashes: u64,
    pub drains: u64,
    pub degrades: u64,
    pub admin_acts: u64,
    /// Notifications, lists and acknowledgements among what clients do.
    pub inboxes: u64,
}

impl Plan {
    pub fn draw(dice: &mut Dice) -> Self {
        let shards = dice.between(1, 4) as u16;
        let users = dice.between(2, 8);
        let limits = Self::limits(dice);
        let sequencer = SequencerConfig {
            shards,
            dedupe_window_ms: 600_000,
            rooms_max: limits.rooms_max,
            rooms_cached_max: dice.pick(&[2, 65_536]),
            losses_max: dice.pick(&[2, 4_096]),
            inbox: Bounds { items_max: dice.pick(&[3, 1_000]), ..Bounds::default() },
            seed: 7,
            ..SequencerConfig::default()
        };
        // A fault is there in some runs only, and then often.
        let mut sometimes = |of: &[u64], high: u64| if dice.chance(400) { dice.pick(of).min(high) } else { 0 };
        let [commit_fails, commit_unknown] = [sometimes(&[20, 100, 300], 999), sometimes(&[20, 100, 300], 999)];
        let read_fails = sometimes(&[20, 100, 300], 999);
        let mesh_lost = sometimes(&[100, 500, 1_000], 1_000);
        let client_drops = sometimes(&[20, 60, 150], 999);
        let half_open = sometimes(&[100, 500], 999);
        let client_stalls = sometimes(&[20, 100, 300], 999);
        let moderation = sometimes(&[50, 150, 400], 999);
        let crashes = sometimes(&[50, 150], 999);
        let drains = sometimes(&[50, 100], 999);
        let degrades = sometimes(&[100, 300], 999);
        let admin_acts = sometimes(&[200, 600], 999);
        let inboxes = sometimes(&[50, 200, 600], 999);
        Self {
            shards,
            users,
            clients: users + dice.below(users + 1),
            rooms: dice.between(1, 6),
            run_ms: dice.between(4_000, 20_000),
            limits,
            sequencer,
            pause_ms: dice.pick(&[30, 100, 300, 1_500]),
            pipeline: dice.pick(&[1, 3, 8]),
            net_ms: dice.pick(&[0, 2, 50]),
            commit_ms: dice.pick(&[0, 3, 30, 200]),
            batch_max: dice.pick(&[1, 3, 100]),
            read_ms: dice.pick(&[0, 5, 100]),
            log_ms: dice.pick(&[0, 5, 100]),
            window: dice.pick(&[300, 2_000, 100_000]),
            commit_fails,
            commit_unknown,
            read_fails,
            mesh_lost,
            client_drops,
            half_open,
            client_stalls,
            moderation,
            crashes,
            drains,
            degrades,
            admin_acts,
            inboxes,
        }
    }

    fn limits(dice: &mut Dice) -> Limits {
        let is_rated = dice.chance(150);
        // Not both: whoever is sent away for being too fast may find the house full.
        let is_narrow = !is_rated && dice.chance(300);
        Limits {
            rooms_max: if is_narrow { 3 } else { 256 },
            subscriptions_max: if is_narrow { 2 } else { 256 },
            user_connections_max: if is_narrow { 2 } else { 32 },
            shard_connections_max: if is_narrow { 6 } else { 1_000 },
            resume_events_max: dice.pick(&[2, 10, 500]),
            resume_bytes_max: dice.pick(&[300, 3_000, 1_000_000]),
            heartbeat_ms: dice.pick(&[1_000, 3_000, 25_000]),
            appends_max: dice.pick(&[2, 16, 16_384]),
            reads_max: dice.pick(&[1, 4, 16_384]),
            rates_on: is_rated,
            connection_rate: Rate { per_second: 20, burst: 20 },
            user_rate: Rate { per_second: 5, burst: 10 },
            errors_max: if is_rated { 10 } else { 64 },
            recent_bytes_max: dice.pick(&[0, 600, 5_000, 16 << 20]),
            recent_ttl_ms: dice.pick(&[100, 120_000]),
            idle_unload_ms: dice.pick(&[0, 500, 60_000]),
            read_coalesce_ms: dice.pick(&[0, 200]),
            // Devices do not idle here, so that what they chose is what is shown.
            idle_after_ms: 86_400_000,
            grace_ms: dice.pick(&[0, 500, 3_000]),
            presence_tick_ms: dice.pick(&[20, 100]),
            presence_refresh_ms: dice.pick(&[1_000, 3_000]),
            presence_room_max: dice.pick(&[2, 1_000]),
            outbox_low_bytes_max: 1_000,
            outbox_normal_bytes_max: dice.pick(&[2_000, 1 << 20]),
            outbox_bytes_max: 4 << 20,
            outbox_total_bytes_max: 512 << 20,
            batch_delay_ms: 50,
            stall_ms: 4_000,
            ..Limits::default()
        }
    }

    /// The faults end; what is there must heal.
    pub fn heal(&mut self) {
        self.window = 1 << 20;
        self.batch_max = 1_000;
        self.commit_ms = self.commit_ms.min(5);
        for fault in [
            &mut self.commit_fails,
            &mut self.commit_unknown,
            &mut self.read_fails,
            &mut self.mesh_lost,
            &mut self.client_drops,
            &mut self.half_open,
            &mut self.client_stalls,
            &mut self.moderation,
            &mut self.crashes,
            &mut self.drains,
            &mut self.degrades,
            &mut self.admin_acts,
        ] {
            *fault = 0;
        }
    }
}
