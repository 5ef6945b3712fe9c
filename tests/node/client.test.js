// The server as a client in JavaScript meets it: join, send once, resume, presence and inbox over the
// package `ws`, as docs/WEBSOCKET_API.md says. The binary is ANTIPHON_BIN, or the debug build.
'use strict';

const assert = require('node:assert/strict');
const { spawn } = require('node:child_process');
const { createHmac } = require('node:crypto');
const { once } = require('node:events');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { after, before, test } = require('node:test');
const WebSocket = require('ws');

const BINARY = process.env.ANTIPHON_BIN ?? path.join(__dirname, '..', '..', 'target', 'debug', 'antiphon');
const SECRET = 'node-tests-only-0123456789-0123456789';
const PATIENCE_MS = 20_000;

let folder, server, url;
const open = new Set();

function mint(user, seconds = 600) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const text = `${part({ alg: 'HS256', typ: 'JWT' })}.${part({ sub: user, exp: Math.floor(Date.now() / 1000) + seconds })}`;
  return `${text}.${createHmac('sha256', SECRET).update(text).digest('base64url')}`;
}

/** Frames are kept in order; who asks takes the first one that fits. */
class Client {
  static async connect(user, device, query = '') {
    const client = new Client();
    // As a browser does it: the token as a subprotocol.
    client.socket = new WebSocket(`${url}?device=${device}${query}`, ['antiphon.v1', `bearer.${mint(user)}`]);
    open.add(client.socket);
    client.frames = [];
    client.waiting = [];
    client.ids = 0;
    client.closed = once(client.socket, 'close').then(([code, reason]) => ({ code, reason: reason.toString() }));
    client.socket.on('message', (data, isBinary) => {
      assert.equal(isBinary, false);
      const parsed = JSON.parse(data);
      for (const frame of Array.isArray(parsed) ? parsed : [parsed]) client.hear(frame);
    });
    client.hello = await client.take((frame) => frame.type === 'hello');
    assert.equal(client.socket.protocol, 'antiphon.v1');
    return client;
  }

  hear(frame) {
    const at = this.waiting.findIndex((waiter) => waiter.fits(frame));
    if (at < 0) this.frames.push(frame);
    else this.waiting.splice(at, 1)[0].resolve(frame);
  }

  take(fits) {
    const at = this.frames.findIndex(fits);
    if (at >= 0) return Promise.resolve(this.frames.splice(at, 1)[0]);
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`nothing fits ${fits}`)), PATIENCE_MS);
      this.waiting.push({ fits, resolve: (frame) => (clearTimeout(timer), resolve(frame)) });
    });
  }

  event(type, fits = () => true) {
    return this.take((frame) => frame.type === type && frame.id === undefined && fits(frame));
  }

  async reply(type, fields = {}) {
    const id = ++this.ids;
    this.socket.send(JSON.stringify({ type, id, ...fields }));
    return this.take((frame) => frame.id === id);
  }

  async ask(type, fields) {
    const reply = await this.reply(type, fields);
    assert.equal(reply.type, 'ok', JSON.stringify(reply));
    return reply;
  }

  async close() {
    this.socket.close(1000);
    return this.closed;
  }
}

before(async () => {
  folder = fs.mkdtempSync(path.join(os.tmpdir(), 'antiphon-node-'));
  const flags = ['--listen', '127.0.0.1:0', '--control-listen', '127.0.0.1:0', '--shards', '2', '--pin', 'off',
    '--grace-ms', '0', '--drain-ms', '1000', '--data-dir', path.join(folder, 'data')];
  const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('ANTIPHON_')));
  server = spawn(BINARY, ['serve', ...flags], { cwd: folder, env: { ...env, ANTIPHON_JWT_SECRET: SECRET },
    stdio: ['ignore', 'pipe', 'ignore'] });
  let said = '';
  url = await new Promise((resolve, reject) => {
    server.stdout.on('data', (chunk) => {
      said += chunk;
      const found = /^ {2}listen +(\S+)$/m.exec(said);
      if (found) resolve(found[1]);
    });
    server.on('error', reject);
    server.on('exit', () => reject(new Error(`not ready: ${said}`)));
  });
}, { timeout: PATIENCE_MS });

after(async () => {
  for (const socket of open) socket.terminate();
  if (server && server.exitCode === null) {
    server.kill('SIGKILL');
    await once(server, 'exit');
  }
  fs.rmSync(folder, { recursive: true, force: true });
});

const limits = { timeout: PATIENCE_MS };

test('join, send once, and hear it', limits, async () => {
  const [ann, bob] = [await Client.connect('ann', 'web'), await Client.connect('bob', 'web', '&batch=1')];
  assert.equal((await ann.ask('room:join', { room: 'tea' })).role, 'owner');
  assert.equal((await bob.ask('room:join', { room: 'tea' })).members, 2);
  const message = { room: 'tea', body: 'grüße 😀', client_id: 'n-1' };
  const first = await ann.ask('message:send', message);
  const again = await ann.ask('message:send', message);
  assert.deepEqual([again.seq, again.duplicate, first.duplicate], [first.seq, true, false]);
  const heard = await bob.event('message:created');
  assert.deepEqual([heard.seq, heard.author, heard.body], [first.seq, 'ann', 'grüße 😀']);
  assert.equal((await bob.reply('message:send', { room: 'tea', body: '' })).code, 107);
  await Promise.all([ann.close(), bob.close()]);
});

test('resume replays what was missed, in order', limits, async () => {
  const ann = await Client.connect('ann', 'web');
  let bob = await Client.connect('bob', 'web');
  await ann.ask('room:join', { room: 'log' });
  const { epoch, seq } = await bob.ask('room:join', { room: 'log' });
  bob.socket.terminate();
  for (let number = 0; number < 20; number++) await ann.ask('message:send', { room: 'log', body: `${number}` });
  bob = await Client.connect('bob', 'web');
  assert.equal(bob.hello.epoch, epoch);
  const back = await bob.ask('room:subscribe', { room: 'log', since: { epoch, seq } });
  assert.equal(back.recovered, true);
  assert.deepEqual(back.events.map((event) => event.body), Array.from({ length: 20 }, (_, number) => `${number}`));
  assert.deepEqual(back.events.map((event) => event.seq), Array.from({ length: 20 }, (_, number) => seq + 1 + number));
  await ann.ask('message:send', { room: 'log', body: 'live' });
  assert.equal((await bob.event('message:created')).seq, seq + 21);
  await Promise.all([ann.close(), bob.close()]);
});

test('presence of two devices is one status', limits, async () => {
  const ann = await Client.connect('ann', 'web');
  await ann.ask('presence:subscribe', { users: ['eve'] });
  const status = (wanted) => ann.event('presence:changed', ({ presence }) => presence[0].status === wanted);
  const phone = await Client.connect('eve', 'phone');
  await status('online');
  const laptop = await Client.connect('eve', 'laptop');
  assert.equal((await laptop.ask('presence:set', { status: 'busy', custom: 'at work' })).shown, 'busy');
  assert.equal((await status('busy')).presence[0].custom, 'at work');
  await laptop.close();
  await status('online');
  await phone.close();
  assert.equal((await status('offline')).presence[0].cause, 'clean');
  await ann.close();
});

test('the inbox waits, by priority, until it is acknowledged', limits, async () => {
  const ann = await Client.connect('ann', 'web');
  let bob = await Client.connect('bob', 'web');
  for (const client of [ann, bob]) await client.ask('room:join', { room: 'post' });
  await bob.close();
  for (const priority of ['low', 'critical']) await ann.ask('notify', { user: 'bob', name: priority, data: { n: 1 }, priority });
  bob = await Client.connect('bob', 'web');
  const phone = await Client.connect('bob', 'phone');
  assert.equal(bob.hello.inbox, 2);
  const { items } = await bob.event('inbox:item');
  assert.deepEqual(items.map((item) => item.name), ['critical', 'low']);
  const numbers = items.map((item) => item.item);
  assert.equal((await bob.ask('inbox:ack', { items: numbers })).acked, 2);
  assert.deepEqual((await phone.event('inbox:acked')).items.sort(), numbers.sort());
  assert.deepEqual((await bob.ask('inbox:list')).items, []);
  await Promise.all([ann.close(), bob.close(), phone.close()]);
});

test('a stop says when to come back', limits, async () => {
  const ann = await Client.connect('ann', 'web');
  server.kill('SIGTERM');
  assert.equal((await ann.event('goaway')).reason, 'draining');
  assert.equal((await ann.closed).code, 4200);
  if (server.exitCode === null) await once(server, 'exit');
  assert.equal(server.exitCode, 0);
});
