//! Databases as earlier versions left them: this version's, each step of the schema undone.

use antiphon::store::schema::{DATABASE_FILE, SCHEMA_VERSION};
use rusqlite::Connection;

use super::TempDir;

/// What takes a database from version `n + 2` back to `n + 1`.
const UNDO: [&str; 6] = [
    "DROP TABLE delivered; DROP TABLE message_state; DROP TABLE reactions; DROP TABLE reaction_counts;",
    "DROP TABLE inbox; DROP TABLE inbox_dead;",
    "ALTER TABLE heads DROP COLUMN messages; ALTER TABLE heads DROP COLUMN hash;
     ALTER TABLE anchors DROP COLUMN messages; ALTER TABLE anchors DROP COLUMN hash;
     ALTER TABLE cursors DROP COLUMN counted; DROP INDEX message_deleted;",
    "DROP TABLE dead_letters; ALTER TABLE revocations DROP COLUMN expires_ts;
     CREATE TABLE inbox_dead (
        id INTEGER PRIMARY KEY, user TEXT NOT NULL, priority INTEGER NOT NULL, ts INTEGER NOT NULL,
        dead_ts INTEGER NOT NULL, attempts INTEGER NOT NULL, sender TEXT, name TEXT NOT NULL, data TEXT NOT NULL);",
    "DROP TABLE presence_log; DROP TABLE presence_users; DROP TABLE presence_shards;
     DROP TABLE presence_hours; DROP TABLE presence_devices; DROP TABLE presence_active;",
    "CREATE TABLE cursors (
        user TEXT NOT NULL, room INTEGER NOT NULL, read INTEGER NOT NULL, counted INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (user, room)) WITHOUT ROWID;
     INSERT INTO cursors SELECT user, room, read, counted FROM members WHERE read > 0;
     ALTER TABLE members DROP COLUMN read; ALTER TABLE members DROP COLUMN counted;",
];

/// Makes a stopped store's database one of `version`.
pub fn downgrade(dir: &TempDir, version: u32) {
    assert_eq!(UNDO.len() as u32 + 1, SCHEMA_VERSION, "each step after the first can be undone");
    let db = Connection::open(dir.path().join(DATABASE_FILE)).unwrap();
    for undo in UNDO[version as usize - 1..].iter().rev() {
        db.execute_batch(undo).unwrap();
    }
    db.execute_batch(&format!("PRAGMA user_version = {version}")).unwrap();
}
