// A JSON broadcast server on uWebSockets, for scripts/bench-peers, as its author advises to write one: a topic for
// each room, replies within the cork that the library opens around every read, and publications that it gathers and
// sends once a loop iteration. It stores nothing and knows no users. It speaks the dialect `plain` of antiphon-load.
//
// Prints `listening <port>` once it does.

#include <charconv>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <string>
#include <string_view>
#include <unordered_map>

#include "App.h"

namespace {

struct Nothing {};
using Socket = uWS::WebSocket<false, true, Nothing>;

// Rooms are looked up by the text that came, without a copy of it.
struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
};
std::unordered_map<std::string, uint64_t, Hash, std::equal_to<>> heads;

uint64_t &head_of(std::string_view room) {
    auto found = heads.find(room);
    return found == heads.end() ? heads.emplace(room, 0).first->second : found->second;
}

// The text of a member, as it stands between its quotes; `key` is `"name":"`. A parser for JSON would cost more, and
// what is measured is the library. A quote within a string is always escaped, so the key is found nowhere else.
// Values are copied as they came: they need no unescaping to go out again.
std::string_view text(std::string_view json, std::string_view key) {
    size_t at = json.find(key);
    if (at == json.npos) {
        return {};
    }
    size_t begin = at + key.size(), end = begin;
    while (end < json.size() && json[end] != '"') {
        end += json[end] == '\\' ? 2 : 1;
    }
    return json.substr(begin, end - begin);
}

// The digits of a member; `key` is `"name":`.
std::string_view digits(std::string_view json, std::string_view key) {
    size_t at = json.find(key);
    if (at == json.npos) {
        return {};
    }
    size_t begin = at + key.size(), end = begin;
    while (end < json.size() && json[end] >= '0' && json[end] <= '9') {
        end += 1;
    }
    return json.substr(begin, end - begin);
}

void append(std::string &out, uint64_t number) {
    char buffer[20];
    out.append(buffer, std::to_chars(buffer, buffer + sizeof buffer, number).ptr);
}

void obey(uWS::App &app, Socket *socket, std::string_view command) {
    // Kept from one command to the next, so that nothing is allocated.
    static std::string ok, event;
    std::string_view kind = text(command, "\"type\":\""), room = text(command, "\"room\":\"");
    uint64_t &head = head_of(room);
    ok.assign("{\"type\":\"ok\",\"id\":").append(digits(command, "\"id\":")).append(",\"seq\":");
    if (kind == "room:subscribe") {
        socket->subscribe(room);
        append(ok, head);
        socket->send(ok.append(",\"epoch\":\"peer\"}"), uWS::OpCode::TEXT);
    } else if (kind == "message:send") {
        head += 1;
        auto since = std::chrono::system_clock::now().time_since_epoch();
        event.assign("{\"type\":\"message:created\",\"room\":\"").append(room).append("\",\"seq\":");
        append(event, head);
        append(event.append(",\"ts\":"), std::chrono::duration_cast<std::chrono::milliseconds>(since).count());
        event.append(",\"author\":\"peer\",\"client_id\":\"").append(text(command, "\"client_id\":\""));
        event.append("\",\"body\":\"").append(text(command, "\"body\":\"")).append("\"}");
        // Before the reply: a reply takes along what waits for its socket, so the sender gets both in one write.
        app.publish(room, event, uWS::OpCode::TEXT);
        append(ok, head);
        socket->send(ok.append("}"), uWS::OpCode::TEXT);
    }
}

} // namespace

int main() {
    uWS::App app;
    app.ws<Nothing>("/*", {
        .compression = uWS::DISABLED,
        .maxPayloadLength = 64 * 1024,
        // Pings who was silent for 25 s, as Antiphon does (its own 41 less a margin of 16), in sweeps of 4 s.
        .idleTimeout = 41,
        // Enough that nobody who reads at all loses a message: every delivery is verified.
        .maxBackpressure = 16 * 1024 * 1024,
        .message = [&app](Socket *socket, std::string_view command, uWS::OpCode) { obey(app, socket, command); },
    });
    app.listen("127.0.0.1", 0, [](us_listen_socket_t *listener) {
        if (listener == nullptr) {
            std::cerr << "cannot listen\n";
            std::exit(1);
        }
        std::cout << "listening " << us_socket_local_port(0, reinterpret_cast<us_socket_t *>(listener)) << std::endl;
    });
    app.run();
}
