// A JSON broadcast server on `ws`, for scripts/bench-peers: rooms, an acknowledgement for every message, a
// frame encoded once for all members. It stores nothing and knows no users. It speaks the dialect `plain` of
// antiphon-load: the commands room:subscribe and message:send.
//
// Prints `listening <port>` once it does.
"use strict";

const { WebSocketServer } = require("ws");

const server = new WebSocketServer({ host: "127.0.0.1", port: 0, perMessageDeflate: false, backlog: 4096 });
const rooms = new Map();

function roomOf(name) {
  let room = rooms.get(name);
  if (room === undefined) {
    rooms.set(name, (room = { head: 0, members: new Set() }));
  }
  return room;
}

server.on("connection", (socket) => {
  const joined = new Set();
  socket.on("message", (data) => {
    const command = JSON.parse(data.toString());
    const room = roomOf(command.room);
    if (command.type === "room:subscribe") {
      room.members.add(socket);
      joined.add(room);
      socket.send(JSON.stringify({ type: "ok", id: command.id, seq: room.head, epoch: "peer" }));
    } else if (command.type === "message:send") {
      room.head += 1;
      const { client_id, body } = command;
      const event = { type: "message:created", room: command.room, seq: room.head, ts: Date.now(), author: "peer", client_id, body };
      socket.send(JSON.stringify({ type: "ok", id: command.id, seq: room.head }));
      const frame = Buffer.from(JSON.stringify(event));
      for (const member of room.members) {
        member.send(frame, { binary: false });
      }
    }
  });
  socket.on("close", () => joined.forEach((room) => room.members.delete(socket)));
  socket.on("error", () => {});
});

server.on("listening", () => console.log(`listening ${server.address().port}`));
