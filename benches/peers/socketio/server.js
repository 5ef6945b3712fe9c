// A chat server as a careful user of socket.io would write it, for scripts/bench-peers: rooms, an
// acknowledgement for every message, one broadcast to the room. The number that each message gets in
// its room lets the load generator check that nothing is lost, doubled or out of order.
//
//     node server.js            nothing is stored
//     node server.js FILE       every message is committed to SQLite (WAL, synchronous=FULL) before it is
//                               acknowledged and sent on: what Antiphon promises
//
// Prints `listening <port>` once it does.
"use strict";

const http = require("node:http");
const { Server } = require("socket.io");

const server = http.createServer();
const io = new Server(server, { transports: ["websocket"], serveClient: false, perMessageDeflate: false });
const store = process.argv[2] ? open(process.argv[2]) : () => {};
const heads = new Map();

function open(file) {
  const Database = require("better-sqlite3");
  const db = new Database(file);
  db.pragma("journal_mode = WAL");
  db.pragma("synchronous = FULL");
  db.exec(
    "CREATE TABLE messages (room TEXT, seq INTEGER, author TEXT, client_id TEXT, body TEXT, PRIMARY KEY (room, seq)) WITHOUT ROWID",
  );
  const insert = db.prepare("INSERT INTO messages VALUES (?, ?, ?, ?, ?)");
  return (event) => insert.run(event.room, event.seq, event.author, event.client_id, event.body);
}

io.on("connection", (socket) => {
  socket.on("room:subscribe", ({ room }, ack) => {
    socket.join(room);
    ack({ type: "ok", seq: heads.get(room) ?? 0, epoch: "peer" });
  });
  socket.on("message:send", ({ room, client_id, body }, ack) => {
    const seq = (heads.get(room) ?? 0) + 1;
    const event = { room, seq, ts: Date.now(), author: socket.id, client_id, body };
    store(event);
    heads.set(room, seq);
    ack({ type: "ok", seq });
    io.to(room).emit("message:created", event);
  });
});

server.listen(0, "127.0.0.1", () => console.log(`listening ${server.address().port}`));
