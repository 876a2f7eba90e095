// The design that Ship is held against: a Durable Object for each session that keeps its log in SQLite and hands each event to a second
// one, which sends it to the session's hibernating WebSockets. A third one stands for the table of all sessions.
//
// It answers the requests of `bench_clients.py` in the shapes that they look for, and does no more: nobody is authenticated, nothing
// is validated, a repeated request is done again, and nothing is replayed.

import { DurableObject } from "cloudflare:workers";

export class SessionAgent extends DurableObject {
  constructor(state, env) {
    super(state, env);
    this.sql = state.storage.sql;
    this.sql.exec("CREATE TABLE IF NOT EXISTS session (id TEXT PRIMARY KEY, source TEXT, title TEXT, status TEXT, created_at INTEGER)");
    this.sql.exec("CREATE TABLE IF NOT EXISTS message (seq INTEGER PRIMARY KEY, id TEXT, text TEXT, created_at INTEGER)");
  }

  create(id, { repository, title }) {
    const createdAt = Date.now();
    this.sql.exec("INSERT INTO session VALUES (?, ?, ?, 'idle', ?)", id, repository.source, title, createdAt);
    return { id, repository, title, status: "idle", created_at: createdAt };
  }

  async append(id, text) {
    const message = { id: crypto.randomUUID(), text, created_at: Date.now() };
    const { seq } = this.sql
      .exec("INSERT INTO message (id, text, created_at) VALUES (?, ?, ?) RETURNING seq", message.id, text, message.created_at)
      .one();
    const event = { seq, type: "message.posted", ...message };
    await this.env.BUS.getByName(id).broadcast(event);
    return event;
  }

  messages(limit) {
    return this.sql.exec("SELECT * FROM message ORDER BY seq DESC LIMIT ?", limit).toArray().reverse();
  }

  head() {
    return this.sql.exec("SELECT coalesce(max(seq), 0) AS seq FROM message").one().seq;
  }
}

export class EventBus extends DurableObject {
  fetch() {
    const { 0: client, 1: server } = new WebSocketPair();
    this.ctx.acceptWebSocket(server);
    server.send('{"t":"live"}');
    return new Response(null, { status: 101, webSocket: client });
  }

  broadcast(event) {
    const text = JSON.stringify(event);
    for (const socket of this.ctx.getWebSockets()) {
      try {
        socket.send(text);
      } catch {
        // This client has gone: it loads what it missed when it comes back.
      }
    }
  }
}

export class Directory extends DurableObject {
  constructor(state, env) {
    super(state, env);
    state.storage.sql.exec("CREATE TABLE IF NOT EXISTS session (id TEXT PRIMARY KEY, source TEXT, title TEXT, created_at INTEGER)");
  }

  add({ id, repository, title, created_at: createdAt }) {
    this.ctx.storage.sql.exec("INSERT INTO session VALUES (?, ?, ?, ?)", id, repository.source, title, createdAt);
  }
}

export default {
  async fetch(request, env) {
    const { pathname, searchParams } = new URL(request.url);
    const [id, what] = pathname.split("/").slice(4); // of /api/v1/sessions/{id}/{what}
    if (!id) {
      const made = crypto.randomUUID();
      const session = await env.AGENT.getByName(made).create(made, await request.json());
      await env.DIRECTORY.getByName("all").add(session);
      return Response.json(session, { status: 201 });
    }
    if (what === "events") return env.BUS.getByName(id).fetch(request);
    const agent = env.AGENT.getByName(id);
    if (!what) return Response.json({ id, head_seq: await agent.head() });
    if (request.method === "GET") return Response.json({ items: await agent.messages(Number(searchParams.get("limit"))) });
    return Response.json(await agent.append(id, (await request.json()).text), { status: 201 });
  },
};
