/** What Incoming reads is what the client library reads, wherever the socket cuts it, also after a reconnect. */
import { assert, describe, it, layer } from "@effect/vitest"
import { Kind, Parser, type ParserEvent } from "@nats-io/nats-core/internal"
import { createInbox, headers, type NatsConnection, type Subscription } from "@nats-io/transport-node"
import { Arbitrary, Effect, Schedule } from "effect"
import { Buffer } from "node:buffer"
import { Incoming } from "../../src/nats/Incoming.ts"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import * as draw from "../contract/arbitraries.ts"
import { TestNats } from "../../bench/servers/privateServers.ts"
import { connectTo } from "../../bench/servers/connectTo.ts"

interface Received {
  readonly kind: Kind
  readonly sid?: number
  readonly subject?: string
  readonly reply?: string
  readonly headers?: string
  readonly payload?: string
}

const latin1 = (bytes: Uint8Array | undefined) => Buffer.from(bytes ?? []).toString("latin1")

const seenByLibrary = (event: ParserEvent): Received => {
  if (event.kind !== Kind.MSG) return { kind: event.kind, ...("data" in event ? { payload: latin1(event.data) } : {}) }
  const { msg, data } = event
  const size = Math.max(0, msg!.hdr)
  return {
    kind: event.kind,
    sid: msg!.sid,
    subject: latin1(msg!.subject),
    reply: latin1(msg!.reply),
    headers: latin1(data!.subarray(0, size)),
    payload: latin1(data!.subarray(size)),
  }
}

/** Subscriptions 1 … 3 listen, the others are the library's. */
const listening = [1, 2, 3]

const read = (pieces: ReadonlyArray<Uint8Array>, withIncoming: boolean): ReadonlyArray<Received> => {
  const seen: Array<Received> = []
  const protocol = { parser: new Parser({ push: (event: ParserEvent) => void seen.push(seenByLibrary(event)) }) }
  if (withIncoming) {
    const incoming = new Incoming({ protocol } as unknown as NatsConnection)
    for (const sid of listening) {
      incoming.listen({ getID: () => sid } as Subscription, (subject, reply, block, payload) => {
        seen.push({
          kind: Kind.MSG,
          sid,
          subject: latin1(Buffer.from(subject)),
          reply: latin1(Buffer.from(reply)),
          headers: block,
          payload: latin1(typeof payload === "string" ? Buffer.from(payload) : payload),
        })
      })
    }
  }
  for (const piece of pieces) {
    const bytes = Uint8Array.from(piece)
    protocol.parser.parse(bytes)
    // Nobody may keep a view of it.
    bytes.fill(0)
  }
  return seen
}

const operation: Arbitrary.Arbitrary<Buffer> = Arbitrary.map(
  Arbitrary.all([draw.int(0, 11), draw.int(1, 5), draw.text, draw.int(0, 2_000), draw.int(0, 3)]),
  ([kind, sid, text, length, shape]) => {
    if (kind === 0) return Buffer.from("PING\r\n")
    if (kind === 1) return Buffer.from("PONG\r\n")
    if (kind === 2) return Buffer.from("+OK\r\n")
    if (kind === 3) return Buffer.from("-ERR 'Slow Consumer'\r\n")
    if (kind === 4) return Buffer.from('INFO {"max_payload":1048576}\r\n')
    const payload =
      shape === 0
        ? Buffer.from(text)
        : shape === 1
          ? Buffer.from(text, "latin1")
          : Buffer.from(`{"log":"${"MSG a 1 2\r\n".repeat(length / 11)}"}`)
    const reply = kind % 2 === 0 ? ` $JS.ACK.s.c.1.${length}.1.2.3` : ""
    const block = kind < 8 ? Buffer.from(`NATS/1.0\r\nNats-Msg-Id: \u00e4${length}\r\n\r\n`) : undefined
    const size = payload.length + (block?.length ?? 0)
    return Buffer.concat([
      block === undefined
        ? Buffer.from(`MSG logs.${shape === 0 ? "ä" : "a"}.${sid} ${sid}${reply} ${size}\r\n`)
        : Buffer.from(`HMSG logs ${sid}${reply} ${block.length} ${size}\r\n`),
      block ?? Buffer.alloc(0),
      payload,
      Buffer.from("\r\n"),
    ])
  },
)

describe("Incoming", () => {
  it.prop(
    "gives what the library's parser gives, in the same order, however the bytes are cut",
    [Arbitrary.array(operation, { maxLength: 12 }), Arbitrary.array(draw.int(1, 3_000), { maxLength: 24 })],
    ([operations, sizes]) => {
      const all = Buffer.concat(operations)
      const pieces: Array<Buffer> = []
      let at = 0
      for (const size of sizes) pieces.push(all.subarray(at, (at += size)))
      pieces.push(all.subarray(at))
      assert.deepStrictEqual(read(pieces, true), read([all], false))
      // One byte at a time: every state that a cut can leave.
      const bytes = Array.from(all.subarray(0, 500), (_, i) => all.subarray(i, i + 1))
      assert.deepStrictEqual(read(bytes, true), read(bytes, false))
    },
  )
})

layer(TestNats.layer, { excludeTestServices: true })("Incoming", (it) => {
  it.effect("listens to a server, also after the connection was made again, until it is told to forget", () =>
    Effect.gen(function* () {
      const nats = yield* NatsServer
      const [connection, publisher] = yield* Effect.all([0, 1].map(() => connected(nats.url)))
      const incoming = new Incoming(connection!)
      const inbox = createInbox()
      const byLibrary: Array<string> = []
      const seen: Array<string> = []
      const subscription = connection!.subscribe(inbox, {
        callback: (_, message) => void byLibrary.push(message.string()),
      })
      incoming.listen(subscription, (_, __, block, payload) =>
        seen.push(`${block.split("\r\n")[1]} ${String(payload)}`),
      )
      /** Returns when it has arrived, somewhere. */
      const send = Effect.fnUntraced(function* (text: string) {
        const before = seen.length + byLibrary.length
        const own = headers()
        own.set("x", "y")
        publisher!.publish(inbox, text, { headers: own })
        yield* Effect.sync(() => seen.length + byLibrary.length > before).pipe(
          Effect.repeat({ until: (more) => more, schedule: Schedule.spaced("5 millis") }),
          Effect.timeout("20 seconds"),
        )
      })
      const large = "ä".repeat(400_000)
      yield* Effect.promise(() => connection!.flush())
      yield* send("1")
      yield* send(large)
      const reconnected = Effect.promise(async () => {
        for await (const status of connection!.status()) if (status.type === "reconnect") return
      })
      yield* Effect.all([reconnected, Effect.promise(() => connection!.reconnect())], { concurrency: 2 })
      // Only then has the server the subscription again.
      yield* Effect.promise(() => connection!.flush())
      yield* send("2")
      incoming.forget(subscription)
      yield* send("3")
      assert.deepStrictEqual(seen, ["x: y 1", `x: y ${large}`, "x: y 2"])
      assert.deepStrictEqual(byLibrary, ["3"])
    }).pipe(Effect.scoped),
  )
})

const connected = (servers: string) =>
  Effect.acquireRelease(
    Effect.promise(() => connectTo(servers, { reconnectTimeWait: 10, maxReconnectAttempts: -1 })),
    (connection) => Effect.promise(() => connection.close()),
  )
