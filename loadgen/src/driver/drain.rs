//! How long is waited for what is on its way when nothing new is sent any more. Pure.

use crate::plan::ns;

/// Longest that anything is waited for while more and more comes, seconds: a server that has taken more than it could
/// do has time to work it off.
pub const DRAIN_MAX_S: f64 = 120.0;
/// Nothing comes any more when nothing has come for so long, seconds.
const QUIET_S: f64 = 3.0;
/// What might still be unknown has come by then, seconds.
const SETTLED_S: f64 = 0.3;
/// A message that the server puts off is offered again for so long, though nothing but refusals comes, seconds.
const OFFERED_S: f64 = 15.0;

/// Where the waiting stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drain {
    /// More may come.
    GoesOn,
    /// Everything has come, or nothing does any more.
    Over,
    /// Things still come, and have for too long: what is missing is late, not lost.
    Overdue,
}

/// `since_ns` after the end, `quiet_ns` after the last that came, refusals for the time being apart. `is_put_off`: some
/// message waits to be sent again; `is_behind` tells whether anything is missing.
pub fn drain(since_ns: u64, quiet_ns: u64, is_put_off: bool, is_behind: impl FnOnce() -> bool) -> Drain {
    if quiet_ns < ns(SETTLED_S) && since_ns < ns(DRAIN_MAX_S) {
        return Drain::GoesOn;
    }
    let is_quiet = quiet_ns > ns(QUIET_S);
    if is_quiet && (!is_put_off || since_ns >= ns(OFFERED_S)) || !is_put_off && !is_behind() {
        Drain::Over
    } else if since_ns >= ns(DRAIN_MAX_S) {
        Drain::Overdue
    } else {
        Drain::GoesOn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_while_things_come_and_not_for_ever() {
        let after = |since_s, quiet_s, is_put_off, is_behind| drain(ns(since_s), ns(quiet_s), is_put_off, || is_behind);
        assert_eq!(after(0.2, 0.2, false, false), Drain::GoesOn, "what is not known yet may come");
        assert_eq!(after(0.4, 0.4, false, false), Drain::Over);
        assert_eq!(after(0.4, 0.4, false, true), Drain::GoesOn);
        assert_eq!(after(3.1, 3.1, false, true), Drain::Over, "the rest is lost");
        assert_eq!(after(60.0, 0.1, false, true), Drain::GoesOn, "a server that works off what it took");
        assert_eq!(after(60.0, 2.0, false, true), Drain::GoesOn);
        assert_eq!(after(120.0, 0.1, false, true), Drain::Overdue);
        assert_eq!(after(120.0, 0.1, false, false), Drain::Over);
        // Refused for the time being, and for good in the end.
        assert_eq!(after(10.0, 10.0, true, true), Drain::GoesOn);
        assert_eq!(after(15.0, 15.0, true, true), Drain::Over);
        assert_eq!(after(15.0, 1.0, true, true), Drain::GoesOn, "others are still taken");
    }
}
