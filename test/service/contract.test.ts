/**
 * The contract of the service from a foreign client's point of view: plain core publishes of JSON, a plain subscription
 * to `response`, on a real nats-server and two real PostgreSQL shards.
 */
import { assert, layer } from "@effect/vitest"
import { Effect, Layer, Queue } from "effect"
import { TestNats, TestPostgres } from "../../bench/servers/privateServers.ts"
import { startWorker } from "./service.ts"
import { ForeignClient } from "../foreign/ForeignClient.ts"

const service = ForeignClient.layer.pipe(
  Layer.provideMerge(Layer.effectDiscard(startWorker)),
  Layer.provideMerge(Layer.mergeAll(TestNats.layer, TestPostgres.layer(2))),
)

/** Objects of their own for each test. */
let lastId = 1000
const freshId = () => ++lastId

layer(service, { excludeTestServices: true, timeout: "60 seconds" })("contract", (it) => {
  it.effect("an append is answered with its place and read back", () =>
    Effect.gen(function* () {
      const client = yield* ForeignClient
      const id = freshId()
      const before = Date.now()
      const first = yield* client.append(`{"id": ${id}, "log": "disk 3 replaced"}`)
      const second = yield* client.append(`{"log":"again","id":"${id}","request_id":"r1","unknown":{"id":7}}`)
      assert.deepInclude(first.body, { type: "append", status: "ok", position: 1 })
      assert.deepInclude(second.body, { type: "append", status: "ok", position: 2, request_id: "r1" })
      assert.isUndefined(first.body.duplicate)
      assert.isTrue(Math.abs(first.body.timestamp! - before) < 60_000)
      const pages = yield* client.read(`{"id":${id},"request_id":"q1"}`)
      assert.lengthOf(pages, 1)
      assert.deepInclude(pages[0]!.body, { type: "query", status: "ok", page: 0, last: true, request_id: "q1" })
      assert.deepStrictEqual(pages[0]!.body.entries, [
        { position: 1, seq: first.body.seq!, timestamp: first.body.timestamp!, log: "disk 3 replaced" },
        { position: 2, seq: second.body.seq!, timestamp: second.body.timestamp!, log: "again" },
      ])
    }),
  )

  it.effect("ids are exact over the whole range, as number and as string", () =>
    Effect.gen(function* () {
      const client = yield* ForeignClient
      for (const id of ["0", "9007199254740993", "9223372036854775808", "18446744073709551615"]) {
        const number = yield* client.append(`{"id":${id},"log":"as number"}`)
        const text = yield* client.append(`{"id":"${id}","log":"as string"}`)
        assert.include(number.text, `"id":${id},`)
        assert.include(text.text, `"id":${id},`)
        const [page] = yield* client.read(`{"id":${id}}`)
        assert.include(page!.text, `"id":${id},`)
        assert.deepStrictEqual(
          page!.body.entries!.map((entry) => entry.log),
          ["as number", "as string"],
        )
      }
    }),
  )

  it.effect("what is no id is refused", () =>
    Effect.gen(function* () {
      const client = yield* ForeignClient
      for (const id of ["18446744073709551616", "-1", "1.5", "1e3", '"1e3"', '"x"', "null"]) {
        const event = yield* client.append(`{"id":${id},"log":"x","request_id":"bad"}`)
        assert.deepInclude(event.body, { type: "append", status: "error", request_id: "bad" })
        assert.strictEqual(event.body.error!.code, "invalid_message")
        assert.match(event.body.error!.message, /^id: expected an unsigned 64-bit integer/)
      }
    }),
  )

  it.effect("text comes back character for character", () =>
    Effect.gen(function* () {
      const client = yield* ForeignClient
      const id = freshId()
      const logs = [
        "",
        "\u0000",
        "a\u0000b",
        "\ud800",
        "\udc00x\ud800",
        "🎉 ü 漢",
        "\\u0000",
        '"\n\t\\',
        " ".repeat(1000),
      ]
      for (const log of logs) {
        assert.strictEqual((yield* client.append(`{"id":${id},"log":${JSON.stringify(log)}}`)).body.status, "ok")
      }
      const [page] = yield* client.read(`{"id":${id}}`)
      assert.deepStrictEqual(
        page!.body.entries!.map((entry) => entry.log),
        logs,
      )
    }),
  )

  it.effect("900 KiB of control characters come back", () =>
    Effect.gen(function* () {
      const client = yield* ForeignClient
      const id = freshId()
      const log = "\u0001".repeat((900 * 1024) / 6)
      assert.strictEqual((yield* client.append(`{"id":${id},"log":${JSON.stringify(log)}}`)).body.status, "ok")
      const pages = yield* client.read(`{"id":${id}}`)
      assert.strictEqual(pages[0]!.body.entries![0]!.log, log)
    }),
  )

  it.effect("an entry that just fits is taken, one byte more is refused", () =>
    Effect.gen(function* () {
      const client = yield* ForeignClient
      const id = freshId()
      const fits = client.connection.info!.max_payload - 2048 - 2
      const taken = yield* client.append(`{"id":${id},"log":"${"x".repeat(fits)}"}`)
      assert.strictEqual(taken.body.status, "ok")
      const refused = yield* client.append(`{"id":${id},"log":"${"x".repeat(fits + 1)}"}`)
      assert.strictEqual(refused.body.error!.code, "log_too_large")
      const pages = yield* client.read(`{"id":${id},"request_id":${JSON.stringify("\u0001".repeat(128))}}`)
      assert.lengthOf(pages, 1)
      assert.isAtMost(Buffer.byteLength(pages[0]!.text), client.connection.info!.max_payload)
      assert.lengthOf(pages[0]!.body.entries![0]!.log, fits)
    }),
  )

  it.effect("every refusal has its code, names what is wrong, and is kept as a dead letter", () =>
    Effect.gen(function* () {
      const client = yield* ForeignClient
      const dead = yield* Queue.unbounded<{ payload: string; code: string; reason: string; subject: string }>()
      const subscription = client.connection.subscribe("dead.>", {
        callback: (_, message) =>
          void Queue.offerUnsafe(dead, {
            payload: message.string(),
            code: message.headers!.get("Objectlog-Code"),
            reason: message.headers!.get("Objectlog-Reason"),
            subject: message.subject,
          }),
      })
      const cases = [
        ["logs", "not json", "invalid_json", 'payload: expected a JSON object, got "not json"'],
        ["logs", "[1]", "invalid_message", "payload: expected a JSON object, got [1]"],
        ["logs", '{"id":1,"log":7}', "invalid_message", "log: expected a string, got 7"],
        ["logs", '{"id":1}', "invalid_message", "log: expected a string, got nothing"],
        [
          "logs",
          '{"id":1,"log":"x","reply_to":"logs"}',
          "invalid_reply_to",
          'reply_to: expected a subject below _INBOX or response, got "logs"',
        ],
        ["query", '{"id":1,"limit":0}', "invalid_message", "limit: expected an integer from 1, got 0"],
        [
          "query",
          '{"id":1,"after":"zzz"}',
          "invalid_cursor",
          'after: expected the next of an earlier page of object 1, got "zzz"',
        ],
      ] as const
      for (const [subject, payload, code, message] of cases) {
        yield* client.publish(subject, payload)
        const event = yield* client.next
        assert.deepStrictEqual(event.body.error, { code, message })
        const letter = yield* Queue.take(dead)
        assert.deepInclude(letter, { payload, code, reason: message, subject: `dead.${subject}` })
      }
      subscription.unsubscribe()
    }),
  )

  it.effect("reply_to gets the same event, on an inbox and below response; nowhere else", () =>
    Effect.gen(function* () {
      const client = yield* ForeignClient
      const id = freshId()
      for (const subject of ["_INBOX.client.one", "response.team.one"]) {
        const replies = yield* client.subscribe(subject)
        const event = yield* client.append(`{"id":${id},"log":"x","reply_to":"${subject}"}`)
        const reply = yield* Queue.take(replies)
        assert.strictEqual(reply.text, event.text)
        const [page] = yield* client.read(`{"id":${id},"reply_to":"${subject}"}`)
        assert.strictEqual((yield* Queue.take(replies)).text, page!.text)
        yield* client.publish("logs", `{"id":-1,"reply_to":"${subject}"}`)
        assert.strictEqual((yield* Queue.take(replies)).text, (yield* client.next).text)
      }
      for (const subject of ["response", "query", "$JS.API.STREAM.DELETE.x", "_INBOX.*", "response.>", "_INBOX.a b"]) {
        const event = yield* client.append(`{"id":${id},"log":"x","reply_to":${JSON.stringify(subject)}}`)
        assert.strictEqual(event.body.error!.code, "invalid_reply_to")
      }
    }).pipe(Effect.scoped),
  )

  it.effect("Nats-Msg-Id makes an append idempotent for its object, beyond the broker's window", () =>
    Effect.gen(function* () {
      const client = yield* ForeignClient
      const [id, other] = [freshId(), freshId()]
      const first = yield* client.append(`{"id":${id},"log":"once"}`, { "Nats-Msg-Id": "m-1" })
      // The broker's own window on the intake is 100 ms; another append with another id lets the clock pass it.
      yield* Effect.sleep("150 millis")
      const second = yield* client.append(`{"id":${id},"log":"once"}`, { "Nats-Msg-Id": "m-1" })
      assert.deepInclude(second.body, {
        duplicate: true,
        position: 1,
        seq: first.body.seq!,
        timestamp: first.body.timestamp!,
      })
      yield* Effect.sleep("150 millis")
      const third = yield* client.append(`{"id":${other},"log":"once"}`, { "Nats-Msg-Id": "m-1" })
      assert.isUndefined(third.body.duplicate)
      assert.strictEqual((yield* client.read(`{"id":${id}}`))[0]!.body.entries!.length, 1)
    }),
  )

  it.effect("ranges, order, limit, cursor and position", () =>
    Effect.gen(function* () {
      const client = yield* ForeignClient
      const id = freshId()
      const stamps: Array<number> = []
      for (let i = 1; i <= 10; i++) {
        stamps.push((yield* client.append(`{"id":${id},"log":"${i}"}`)).body.timestamp!)
      }
      const logs = (event: { readonly body: { readonly entries?: ReadonlyArray<{ readonly log: string }> } }) =>
        event.body.entries!.map((entry) => entry.log).join(" ")
      for (const order of ["asc", "desc"]) {
        const whole = order === "asc" ? "1 2 3 4 5 6 7 8 9 10" : "10 9 8 7 6 5 4 3 2 1"
        const seen: Array<string> = []
        let after = ""
        for (;;) {
          const [page] = yield* client.read(`{"id":${id},"order":"${order}","limit":4${after}}`)
          assert.strictEqual(page!.body.last, true)
          seen.push(logs(page!))
          if (page!.body.next === undefined) break
          after = `,"after":"${page!.body.next}"`
        }
        assert.strictEqual(seen.join(" "), whole)
        assert.lengthOf(seen, 3)
      }
      assert.isUndefined((yield* client.read(`{"id":${id},"limit":10}`))[0]!.body.next)
      assert.strictEqual(logs((yield* client.read(`{"id":${id},"after_position":7}`))[0]!), "8 9 10")
      assert.strictEqual(logs((yield* client.read(`{"id":${id},"after_position":10}`))[0]!), "")
      const [from, to] = [stamps[3]!, stamps[7]!]
      const expected = stamps.flatMap((stamp, i) => (stamp >= from && stamp < to ? [String(i + 1)] : [])).join(" ")
      assert.strictEqual(logs((yield* client.read(`{"id":${id},"from":${from},"to":${to}}`))[0]!), expected)
      assert.strictEqual(logs((yield* client.read(`{"id":${id},"from":${to},"to":${from}}`))[0]!), "")
    }),
  )

  it.effect("an object without a log gives one page without entries", () =>
    Effect.gen(function* () {
      const client = yield* ForeignClient
      const pages = yield* client.read(`{"id":${freshId()}}`)
      assert.lengthOf(pages, 1)
      assert.deepInclude(pages[0]!.body, { page: 0, last: true, entries: [] })
    }),
  )

  it.effect("a long log comes as consecutive pages that fill max_payload and never exceed it", () =>
    Effect.gen(function* () {
      const client = yield* ForeignClient
      const id = freshId()
      const count = 400
      for (let i = 0; i < count; i++)
        yield* client.publish("logs", `{"id":${id},"log":"${String(i).padStart(10_000, "0")}"}`)
      for (let i = 0; i < count; i++) yield* client.next
      const pages = yield* client.read(`{"id":${id}}`)
      const maxPayload = client.connection.info!.max_payload
      assert.deepStrictEqual(
        pages.map((page) => page.body.page),
        pages.map((_, i) => i),
      )
      for (const page of pages) assert.isAtMost(Buffer.byteLength(page.text), maxPayload)
      for (const page of pages.slice(0, -1)) assert.isAtLeast(Buffer.byteLength(page.text), maxPayload * 0.95)
      const entries = pages.flatMap((page) => page.body.entries!)
      assert.deepStrictEqual(
        entries.map((entry) => Number(entry.log)),
        Array.from({ length: count }, (_, i) => i),
      )
      assert.deepStrictEqual(
        entries.map((entry) => entry.position),
        Array.from({ length: count }, (_, i) => i + 1),
      )
    }),
  )

  it.effect("garbage beside good messages delays nobody and loses nothing", () =>
    Effect.gen(function* () {
      const client = yield* ForeignClient
      const id = freshId()
      for (let i = 0; i < 500; i++) {
        yield* client.publish("logs", i % 2 === 0 ? `{"id":${id},"log":"${i}"}` : `{"id":${id},"log":${i}}`)
      }
      const outcomes = yield* Effect.forEach(Array.from({ length: 500 }), () => client.next)
      assert.lengthOf(
        outcomes.filter((event) => event.body.status === "ok"),
        250,
      )
      assert.lengthOf(
        outcomes.filter((event) => event.body.error?.code === "invalid_message"),
        250,
      )
      const pages = yield* client.read(`{"id":${id}}`)
      assert.deepStrictEqual(
        pages.flatMap((page) => page.body.entries!).map((entry) => Number(entry.log)),
        Array.from({ length: 250 }, (_, i) => 2 * i),
      )
    }),
  )
})
