//! What holds between flags, variables, `config.toml` and defaults.

use std::os::unix::fs::PermissionsExt as _;

use clap::{CommandFactory as _, FromArgMatches as _, Parser};

use super::*;
use crate::test_dir::TestDir;

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    flags: Flags,
}

const SHIPPED: &str = include_str!("../../config.toml");

/// The shipped file with every setting switched on: a setting is commented as `#name = …`, prose as `# …`.
fn uncommented() -> String {
    SHIPPED
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => rest,
            _ => line,
        })
        .collect::<Vec<_>>()
        .join("\n")
}

fn flags(args: &[&str]) -> Flags {
    // Without variables: whoever runs the tests may have some set.
    let command = Cli::command().mut_args(|arg| arg.env(clap::builder::Resettable::Reset));
    let matches = command.try_get_matches_from(std::iter::once("antiphon").chain(args.iter().copied())).unwrap();
    Cli::from_arg_matches(&matches).unwrap().flags
}

fn load(text: &str, args: &[&str]) -> Result<Config, String> {
    let file = parse_file(text).map_err(|(line, what)| format!("line {line}: {what}"))?;
    Config::new(Settings::merge(&flags(args), file)?, 2)
}

#[test]
fn the_shipped_file_is_the_defaults() {
    assert_eq!(Settings::merge(&Flags::default(), parse_file(SHIPPED).unwrap()), Ok(Settings::default()));
    let text = uncommented();
    assert_eq!(Settings::merge(&Flags::default(), parse_file(&text).unwrap()), Ok(Settings::default()));
    // And it leaves no knob out.
    let table: toml::Table = text.parse().unwrap();
    for knob in Settings::default().knobs() {
        let value = &table[knob.section][knob.name];
        assert_eq!(Some(value.to_string()), knob.toml, "{}.{}", knob.section, knob.name);
    }
}

#[test]
fn the_defaults_make_a_config_and_the_limits_are_the_engines() {
    let config = load("", &[]).unwrap();
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.server.shards, 2);
    assert_eq!(config.auth.key, KeySource::Development("./data/dev-secret".into()));
}

#[test]
fn every_knob_has_a_flag_and_its_variable() {
    let command = Cli::command();
    for knob in Settings::default().knobs() {
        let arg = command.get_arguments().find(|arg| arg.get_long() == Some(knob.flag));
        let arg = arg.unwrap_or_else(|| panic!("no flag --{}", knob.flag));
        let variable = format!("ANTIPHON_{}", knob.flag.to_uppercase().replace('-', "_"));
        assert_eq!(arg.get_env().and_then(|env| env.to_str()), Some(variable.as_str()), "--{}", knob.flag);
        assert_eq!(knob.env, variable);
        let help = arg.get_long_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.contains("[default: ") && help.ends_with(&format!("env: {variable}]")), "--{}: {help}", knob.flag);
        let has_unit = ["_ms", "_us", "_s", "_days", "bytes_max", "bytes_min", "_bytes"]
            .iter()
            .any(|unit| knob.name.ends_with(unit));
        let is_count = ["_max", "_burst", "_threads", "buffers", "entries"].iter().any(|end| knob.name.ends_with(end));
        assert!(knob.range.is_none() || has_unit || is_count, "{} is a number of what?", knob.name);
    }
}

#[test]
fn flags_go_before_the_file_and_the_file_before_the_defaults() {
    let file = "[server]\nlisten = \"127.0.0.1:1\"\nshards = 3\npin = false\n[limits]\nrates = false\n";
    let config = load(file, &["--listen", "127.0.0.1:0", "--rate-limits", "on"]).unwrap();
    assert_eq!(config.server.listen.port(), 0);
    assert_eq!((config.server.shards, config.server.pin), (3, false));
    assert!(config.limits.rates_on);
    assert!(load(file, &["--pin"]).unwrap().server.pin);
    assert!(!load("", &["--pin", "off"]).unwrap().server.pin);
}

#[test]
fn the_printed_config_reads_back_and_shows_no_secret() {
    let secret = "s3cret-s3cret-s3cret-s3cret-s3cret";
    let args = ["--jwt-secret", secret, "--admin-token", secret, "--heartbeat-ms", "5000"];
    let printed = load("", &[&args[..], &["--origins", "https://a.example, http://b.example:8080"]].concat())
        .unwrap()
        .settings
        .to_toml();
    assert!(!printed.contains("s3cret"), "{printed}");
    assert!(printed.contains("# jwt_secret is set; not shown"));
    let again = load(&printed, &[]).unwrap();
    assert_eq!(again.limits.heartbeat_ms, 5000);
    assert_eq!(again.auth.origins, ["https://a.example", "http://b.example:8080"]);
    assert_eq!(load(&Settings::default().to_toml(), &[]).unwrap().settings, Settings::default());
}

#[test]
fn wrong_settings_are_named_in_one_sentence() {
    let cases = [
        ("[server]\nlissten = \"x\"\n", "line 2: there is no setting lissten; did you mean listen?"),
        ("[sever]\n", "line 1: there is no setting sever; did you mean server?"),
        ("\n\n[limits]\nheartbeat_ms = \"fast\"\n", "line 4: invalid type: string \"fast\", expected u32"),
        ("[limits]\nheartbeat_ms = 5\n", "limits.heartbeat_ms (--heartbeat-ms, ANTIPHON_HEARTBEAT_MS) is 5"),
        ("[limits]\nrooms_max = -1\n", "line 2: invalid value"),
        ("[limits]\nrates = \"maybe\"\n", "must be \"on\" or \"off\""),
        ("[server]\nlisten = \"localhost\"\n", "line 2: "),
        ("[server\n", "line 1: "),
        ("[server]\nlisten = \"127.0.0.1:9\"\ncontrol_listen = \"127.0.0.1:9\"\n", "are both 127.0.0.1:9"),
        ("[server]\nshards = 0\n", "must be \"auto\" or a number from 1 to 256"),
        ("[server]\ndata_dir = \"\"\n", "server.data_dir must not be empty"),
        ("[store]\ndurability = \"none\"\n", "must be one of full|relaxed"),
        ("[auth]\njwt_secret = \"short\"\n", "auth.jwt_secret has 5 bytes, but at least 32 are needed"),
        (
            "[auth]\njwks_file = \"a\"\njwt_secret_file = \"b\"\n",
            "takes one key, but has jwt_secret_file and jwks_file",
        ),
        ("[admin]\ntoken = \"short\"\n", "admin.token has 5 bytes"),
        ("[auth]\norigins = [\"https://Good.example/\"]\n", "is not an origin"),
        ("[auth]\norigins = [\"null\"]\n", "auth.origins: \"null\" is not an origin"),
        ("[ring]\nbuffers = 1000\n", "power of two"),
        ("[log]\nlevel = \"a=b=c\"\n", "log.level"),
        ("[limits]\noutbox_bytes_max = 8192\n", "limits.outbox_bytes_max must hold"),
    ];
    for (text, expected) in cases {
        let message = load(text, &[]).map(|_| ()).unwrap_err();
        assert!(message.contains(expected), "{text:?} gives {message:?}");
        assert!(!message.contains('\n'), "{message:?}");
    }
    // Whatever is wrong with a secret, it is not repeated.
    assert!(!load("[auth]\njwt_secret = \"hunter2\"\n", &[]).map(|_| ()).unwrap_err().contains("hunter2"));
}

#[test]
fn a_log_level_that_would_silence_everything_is_refused() {
    let level = |level: &str| load(&format!("[log]\nlevel = {level:?}\n"), &[]).map(|config| config.log.level);
    for (given, kept) in [
        ("info", "info"),
        ("WARN", "WARN"),
        ("off", "off"),
        ("info,antiphon::store=debug", "info,antiphon::store=debug"),
        (" info, antiphon::store=debug,", "info,antiphon::store=debug"),
        ("antiphon[session]=debug", "antiphon[session]=debug"),
    ] {
        assert_eq!(level(given).as_deref(), Ok(kept), "{given:?}");
    }
    for wrong in ["warning", "information", "blah", "", " ", ",", "info,antiphon::store", "info,antiphon=warning"] {
        let message = level(wrong).unwrap_err();
        assert!(message.contains("error, warn, info, debug, trace"), "{wrong:?}: {message}");
    }
}

#[test]
fn misspelt_variables_are_noticed() {
    let names = ["ANTIPHON_LISTEN", "ANTIPHON_LISTENN", "PATH", "ANTIPHON_CONFIG"].map(str::to_owned);
    assert_eq!(unknown_variables(names.into_iter()), ["ANTIPHON_LISTENN"]);
}

#[test]
fn a_development_secret_is_made_once_and_kept_private() {
    let dir = TestDir::new("dev-secret");
    let source = KeySource::Development(dir.0.join("data/dev-secret"));
    let first = source.load().unwrap();
    assert!(first.is_new);
    let again = source.load().unwrap();
    assert!(!again.is_new);
    assert_eq!(again.value, first.value);
    let secrets::KeyMaterial::Hs256(secret) = first.value else { panic!("not a secret") };
    assert_eq!(secret.reveal().len(), 64);
    let mode = |path: &str| std::fs::metadata(dir.0.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("data"), mode("data/dev-secret")), (0o700, 0o600));
    // No other file is left behind.
    assert_eq!(std::fs::read_dir(dir.0.join("data")).unwrap().count(), 1);
}

#[test]
fn starters_at_once_agree_on_one_secret() {
    let dir = TestDir::new("race");
    let source = AdminSource::Made(dir.0.join("admin-token"));
    let made: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| source.load().unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(made.iter().filter(|made| made.is_new).count(), 1);
    assert!(made.iter().all(|other| other.value == made[0].value));
}

#[test]
fn secrets_in_files_are_checked_too() {
    let dir = TestDir::new("secret-file");
    let path = dir.0.join("secret");
    let source = KeySource::SecretFile(path.clone());
    assert!(source.load().unwrap_err().message.contains("cannot be read"));
    std::fs::write(&path, "short\n").unwrap();
    assert!(source.load().unwrap_err().message.contains("has 5 bytes, but at least 32"));
    std::fs::write(&path, format!("{}\r\n", "x".repeat(32))).unwrap();
    assert_eq!(source.load().unwrap().value, secrets::KeyMaterial::Hs256(Secret::new("x".repeat(32))));
    std::fs::write(&path, [0xff; 40]).unwrap();
    assert!(source.load().is_err());
}

#[test]
fn an_unusable_data_folder_has_its_own_exit_code() {
    let source = KeySource::Development("/proc/antiphon/dev-secret".into());
    assert_eq!(source.load().unwrap_err().exit, crate::exit::Exit::DataDir);
}
