/** The client commands against a worker played by the test, on a real nats-server. */
import { assert, describe, it } from "@effect/vitest"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { jetstreamManager } from "@nats-io/jetstream"
import type { NatsConnection } from "@nats-io/transport-node"
import {
  ConfigProvider,
  Duration,
  Effect,
  FileSystem,
  Layer,
  PlatformError,
  Result,
  Schema,
  Sink,
  Stdio,
  Stream,
} from "effect"
import { Command } from "effect/cli"
import { TestConsole } from "effect/testing"
import { Buffer } from "node:buffer"
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { appendCommand, parseTimeout } from "../../src/cli/append.ts"
import { Client } from "../../src/client/Client.ts"
import { orderOf, PageMerge } from "../../src/client/PageMerge.ts"
import type { Entry } from "../../src/contract/Event.ts"
import { lines } from "../../src/cli/input.ts"
import { entryText, parseTime, queryCommand } from "../../src/cli/query.ts"
import { serversFor } from "../../src/cli/servers.ts"
import { escapeLog } from "../../src/cli/terminal.ts"
import * as ObjectId from "../../src/contract/ObjectId.ts"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { ConfiguredNats } from "../embedded/ConfiguredNats.ts"
import { TestNats } from "../../bench/servers/privateServers.ts"
import { connectTo } from "../../bench/servers/connectTo.ts"

const largest = ObjectId.fromDecimal("18446744073709551615")!

const entry = (position: number, timestamp = position * 10): Entry => ({
  position,
  seq: 100 + position,
  timestamp,
  log: `entry ${position}`,
})
const entries = (from: number, to: number): Array<Entry> =>
  Array.from({ length: to - from + 1 }, (_, index) => entry(from + index))

describe("arguments", () => {
  it("times", () => {
    assert.strictEqual(parseTime("1763922300123"), 1763922300123)
    assert.strictEqual(parseTime("0"), 0)
    assert.strictEqual(parseTime("2026-11-23T18:25:00.123Z"), Date.UTC(2026, 10, 23, 18, 25, 0, 123))
    assert.strictEqual(parseTime("2026-11-23T18:25"), Date.UTC(2026, 10, 23, 18, 25), "UTC without an offset")
    assert.strictEqual(parseTime("2026-11-23 18:25:00,5+0130"), Date.UTC(2026, 10, 23, 16, 55, 0, 500))
    assert.strictEqual(parseTime("2026-11-23T18:25-02"), Date.UTC(2026, 10, 23, 20, 25))
    assert.strictEqual(parseTime("2026-11-23"), Date.UTC(2026, 10, 23))
    assert.strictEqual(parseTime("2028-02-29"), Date.UTC(2028, 1, 29))
    for (const wrong of ["", "yesterday", "-1", "2026-02-30", "2026-13-01", "2026-11-23T25:00", "1969-12-31", "1e3"]) {
      assert.isUndefined(parseTime(wrong), wrong)
    }
  })

  it("time-outs", () => {
    assert.deepStrictEqual(
      ["30", "1.5s", "500ms", "2m"].map((text) => Duration.toMillis(parseTimeout(text)!)),
      [30_000, 1_500, 500, 120_000],
    )
    for (const wrong of ["", "0", "-1", "5h", "s"]) assert.isUndefined(parseTimeout(wrong), wrong)
  })
})

describe("printing", () => {
  it("keeps an entry in one line, without ambiguity", () => {
    assert.strictEqual(escapeLog("a\nb\\n\t\u001b[31m\ud800é😀", false), "a\\nb\\\\n\t\u001b[31m\\ud800é😀")
    assert.strictEqual(escapeLog("a\nb\t\u001b[31m\u009b\u202e\r", true), "a\\nb\\t\\x1b[31m\\x9b\\u202e\\r")
    assert.strictEqual(entryText(entry(1, 1763922300123), true), "2025-11-23T18:25:00.123Z  entry 1\n")
  })

  it.effect("reads lines as they are", () =>
    Effect.gen(function* () {
      const of = (...chunks: ReadonlyArray<Uint8Array>) => Stream.runCollect(lines(Stream.fromIterable(chunks)))
      const bytes = Buffer.from("é\n\nb\r\nlast")
      assert.deepStrictEqual(yield* of(bytes.subarray(0, 1), bytes.subarray(1)), ["é", "", "b\r", "last"])
      assert.deepStrictEqual(yield* of(Buffer.from("a\n")), ["a"])
      assert.deepStrictEqual(yield* of(Buffer.from("\n")), [""])
      assert.deepStrictEqual(yield* of(), [])
      const refused = yield* Effect.flip(of(Buffer.from("a\n"), Buffer.from([0xff])))
      assert.include(refused.message, "line 2")
      assert.include((yield* Effect.flip(of(Buffer.from([0xc3])))).message, "not UTF-8")
    }),
  )
})

describe("PageMerge", () => {
  const page = (snapshot: string, number: number, content: ReadonlyArray<Entry>, last = false) => ({
    snapshot,
    page: number,
    last,
    entries: content,
  })
  const positions = (taken: { readonly entries: ReadonlyArray<Entry> } | undefined) =>
    taken?.entries.map(({ position }) => position)

  it("hands on consecutive pages, each once; one that comes early waits for its turn", () => {
    const merge = new PageMerge("asc")
    assert.deepStrictEqual(positions(merge.accept(page("s", 0, entries(1, 2)))), [1, 2])
    assert.isUndefined(merge.accept(page("s", 2, entries(5, 6), true)))
    assert.isUndefined(merge.accept(page("s", 0, entries(1, 2))))
    const rest = merge.accept(page("s", 1, entries(3, 4)))
    assert.deepStrictEqual([positions(rest), rest?.last], [[3, 4, 5, 6], true])
  })

  it("skips in another snapshot what was handed on, also where pages are cut otherwise", () => {
    for (const order of ["asc", "position", "desc"] as const) {
      const all = order === "desc" ? entries(1, 6).toReversed() : entries(1, 6)
      const merge = new PageMerge(order)
      const taken: Array<Entry> = []
      const accept = (snapshot: string, number: number, from: number, to: number) =>
        taken.push(...(merge.accept(page(snapshot, number, all.slice(from, to)))?.entries ?? []))
      accept("s", 0, 0, 2)
      accept("s", 1, 2, 4)
      accept("t", 0, 0, 3)
      accept("t", 2, 5, 6)
      accept("s", 2, 4, 5)
      accept("t", 1, 3, 5)
      assert.deepStrictEqual(taken, all, order)
    }
  })

  it("never goes on with the pages of another snapshot behind its own", () => {
    // Newest first: the second worker saw two entries more, so that its pages begin and end elsewhere.
    const merge = new PageMerge("desc")
    const newest = (from: number, to: number) => entries(to, from).toReversed()
    assert.deepStrictEqual(positions(merge.accept(page("t", 0, newest(12, 8)))), [12, 11, 10, 9, 8])
    assert.deepStrictEqual(positions(merge.accept(page("s", 0, newest(10, 6)))), [7, 6])
    assert.deepStrictEqual(positions(merge.accept(page("s", 1, newest(5, 1), true))), [5, 4, 3, 2, 1])
  })

  it("goes on by the sort order where the last entry is not in the page", () => {
    const merge = new PageMerge("asc")
    merge.accept(page("s", 0, entries(1, 3)))
    assert.deepStrictEqual(positions(merge.accept(page("t", 0, []))), [])
    assert.deepStrictEqual(positions(merge.accept(page("t", 1, entries(4, 5)))), [4, 5])
  })

  it("goes on within one instant by the sequence number", () => {
    for (const order of ["asc", "desc"] as const) {
      const merge = new PageMerge(order)
      const at = (seqs: ReadonlyArray<number>) =>
        seqs.map((seq) => ({ position: 10 + seq, seq, timestamp: 7, log: "x" }))
      const first = order === "asc" ? [1, 2] : [6, 5]
      assert.lengthOf(merge.accept(page("s", 0, at(first)))!.entries, 2)
      // The last one that was handed on is not among these.
      const [others, expected] =
        order === "asc"
          ? [
              [1, 3, 4],
              [13, 14],
            ]
          : [
              [6, 4, 3],
              [14, 13],
            ]
      assert.deepStrictEqual(positions(merge.accept(page("t", 0, at(others)))), expected)
    }
  })

  it("knows the order of a cursor", () => {
    assert.strictEqual(orderOf({ id: largest, after: `d.${largest.toString(36)}.1.1` }), "desc")
    assert.strictEqual(orderOf({ id: largest, after: `p.${largest.toString(36)}.1` }), "position")
    assert.strictEqual(orderOf({ id: largest, afterPosition: 0 }), "position")
    assert.strictEqual(orderOf({ id: largest }), "asc")
  })
})

describe("serversFor", () => {
  const resolve = (env: Readonly<Record<string, string>>) =>
    serversFor.pipe(
      Effect.provide(Layer.merge(NodeServices.layer, ConfigProvider.layer(ConfigProvider.fromEnv({ env })))),
    )

  it.effect("NATS_URL, a running embedded server, or what to do", () =>
    Effect.gen(function* () {
      const folder = yield* Effect.acquireRelease(
        Effect.sync(() => mkdtempSync(join(tmpdir(), "objectlog-"))),
        (path) => Effect.sync(() => rmSync(path, { recursive: true })),
      )
      const record = (pid: number) =>
        writeFileSync(join(folder, "running.json"), JSON.stringify({ nats: "nats://127.0.0.1:4999", pid }))
      const given = yield* resolve({ NATS_URL: "nats://user:secret@somewhere", NATS_LOGS_TOPIC: "l.x" })
      assert.strictEqual(given.logsTopic, "l.x")
      assert.strictEqual(given.queryTopic, "query")
      assert.notInclude(JSON.stringify(given), "secret")
      assert.include((yield* Effect.flip(resolve({ DATA_DIR: folder }))).message, "NATS_URL is not set")
      record(process.pid)
      assert.strictEqual((yield* resolve({ DATA_DIR: folder })).logsTopic, "logs")
      record(0x7fff_fffe)
      assert.include((yield* Effect.flip(resolve({ DATA_DIR: folder }))).message, folder)
      const unreadable = FileSystem.layerNoop({
        readFileString: (path) =>
          Effect.fail(
            PlatformError.systemError({
              _tag: "PermissionDenied",
              module: "FileSystem",
              method: "x",
              pathOrDescriptor: path,
            }),
          ),
      })
      const environment = ConfigProvider.layer(ConfigProvider.fromEnv({ env: { DATA_DIR: folder } }))
      const another = yield* serversFor.pipe(Effect.provide(Layer.merge(unreadable, environment)), Effect.flip)
      assert.include(another.message, `the embedded server in ${folder} belongs to another user: set NATS_URL`)
      assert.include(
        (yield* Effect.flip(resolve({ NATS_URL: "x", NATS_QUERY_TOPIC: "a b" }))).message,
        "NATS_QUERY_TOPIC",
      )
    }),
  )
})

// --- With a server

const Request = Schema.fromJsonString(
  Schema.Struct({
    request_id: Schema.String,
    reply_to: Schema.String,
    log: Schema.optionalKey(Schema.String),
    limit: Schema.optionalKey(Schema.Int),
    after: Schema.optionalKey(Schema.String),
  }),
)
type Request = typeof Request.Type
const decodeRequest = Schema.decodeUnknownSync(Request)

let topics = 0

/** A server, subjects of this test alone, and what the worker of the test answers to each request. */
const withWorker = Effect.fnUntraced(function* (
  answer: (request: Request, text: string, send: (fields: object) => void) => void,
  timeout: Duration.Input = "5 seconds",
) {
  const { url } = yield* NatsServer
  const number = topics++
  const [logsTopic, queryTopic] = [`logs${number}`, `query${number}`]
  const connection: NatsConnection = yield* Effect.acquireRelease(
    Effect.promise(() => connectTo(url)),
    (open) => Effect.promise(() => open.close()),
  )
  yield* Effect.promise(async () => {
    const manager = await jetstreamManager(connection)
    await manager.streams.add({ name: `S${number}`, subjects: [logsTopic, queryTopic] })
  })
  for (const [topic, type] of [
    [logsTopic, "append"],
    [queryTopic, "query"],
  ] as const) {
    connection.subscribe(topic, {
      callback: (_, message) => {
        const request = decodeRequest(message.string())
        answer(request, message.string(), (fields) =>
          connection.publish(request.reply_to, JSON.stringify({ type, ...fields, request_id: request.request_id })),
        )
      },
    })
  }
  yield* Effect.promise(() => connection.flush())
  const client = Client.layer({ servers: url, logsTopic, queryTopic, timeout })
  return { client, url, logsTopic, queryTopic }
})

const readAll = (read: Parameters<Client["Service"]["query"]>[0]) =>
  Effect.flatMap(Client, (client) => Stream.runCollect(client.query(read)))

describe("Client", () => {
  it.live("appends in order, each with its own outcome", () =>
    Effect.gen(function* () {
      const seen: Array<string> = []
      const { client } = yield* withWorker((request, text, send) => {
        seen.push(text)
        const number = seen.length
        // Answers come late, out of order, and twice.
        setTimeout(
          () => {
            if (request.log === "bad") return send({ status: "error", error: { code: "log_too_large", message: "no" } })
            send({ type: "append", status: "ok", position: number, seq: number, timestamp: 5 })
            send({ type: "append", status: "ok", position: 99, seq: 99, timestamp: 5, duplicate: true })
          },
          (number % 7) * 3,
        )
      })
      const logs = Array.from({ length: 1_000 }, (_, index) => (index === 500 ? "bad" : `log ${index}`))
      const outcomes = yield* Client.use((one) =>
        Stream.runCollect(one.append(logs.map((log) => ({ id: largest, log })))),
      ).pipe(Effect.provide(client))
      assert.deepStrictEqual(
        seen.map((text) => decodeRequest(text).log),
        logs,
      )
      assert.include(seen[0], `{"id":${largest},`)
      outcomes.forEach((outcome, index) => {
        if (index === 500) assert.strictEqual(Result.isFailure(outcome) && outcome.failure.code, "log_too_large")
        else assert.strictEqual(Result.isSuccess(outcome) && outcome.success.position, index + 1)
      })
    }).pipe(Effect.provide(TestNats.layer)),
  )

  it.live("refuses by itself what the server would not take, and goes on", () =>
    Effect.gen(function* () {
      const { client } = yield* withWorker((_request, _text, send) =>
        send({ status: "ok", position: 1, seq: 1, timestamp: 1 }),
      )
      const outcomes = yield* Client.use((one) =>
        Stream.runCollect(one.append(["x".repeat(9 * 1024 * 1024), "y"].map((log) => ({ id: largest, log })))),
      ).pipe(Effect.provide(client))
      assert.deepStrictEqual(outcomes.map(Result.isSuccess), [false, true])
    }).pipe(Effect.provide(TestNats.layer)),
  )

  it.live("says what is missing: a worker, a stream, a server", () =>
    Effect.gen(function* () {
      const { client, url } = yield* withWorker(() => undefined, "150 millis")
      const unanswered = yield* readAll({ id: largest }).pipe(Effect.provide(client), Effect.flip)
      const known = "stored by the broker, and not answered within 0.15 s: "
      assert.strictEqual(unanswered.message, `${known}no worker runs, or the object's shard is down`)
      const nowhere = Client.layer({ servers: url, logsTopic: "none", queryTopic: "none", timeout: "1 second" })
      const append = Client.use((one) => Stream.runDrain(one.append([{ id: largest, log: "" }])))
      const unstored = yield* append.pipe(Effect.provide(nowhere), Effect.flip)
      assert.include(unstored.message, "not stored: no objectlog worker has ever been connected")
      const unappended = yield* append.pipe(Effect.provide(client), Effect.flip)
      assert.strictEqual(unappended.message, `${known}a worker appends it once one runs and the object's shard is up`)
      // Somebody listens, and nobody says that it is stored; a stream refuses it.
      const connection = yield* Effect.acquireRelease(
        Effect.promise(() => connectTo(url)),
        (open) => Effect.promise(() => open.close()),
      )
      connection.subscribe("heard", { callback: () => undefined })
      yield* Effect.promise(async () => {
        await connection.flush()
        const manager = await jetstreamManager(connection)
        await manager.streams.add({ name: "SMALL", subjects: ["small"], max_msg_size: 8 })
      })
      const appendOn = (logsTopic: string) =>
        append.pipe(
          Effect.provide(Client.layer({ servers: url, logsTopic, queryTopic: "none", timeout: "150 millis" })),
          Effect.flip,
        )
      assert.strictEqual(
        (yield* appendOn("heard")).message,
        "not confirmed by the broker within 0.15 s: it may be stored or not",
      )
      assert.include((yield* appendOn("small")).message, "not stored: the server refused the request on small: ")
      const servers = "nats://user:secret@127.0.0.1:1"
      const refused = yield* append.pipe(
        Effect.provide(Client.layer({ servers, logsTopic: "none", queryTopic: "none" })),
        Effect.flip,
      )
      assert.include(refused.message, "127.0.0.1:1")
      assert.notInclude(refused.message, "secret")
      assert.notInclude(refused.message, "\n")
    }).pipe(Effect.provide(TestNats.layer)),
  )

  it.live("says that the connection is lost, and why the server does not take it back", () =>
    Effect.gen(function* () {
      const server = yield* ConfiguredNats
      const login = (password: string) => `authorization: { user: "u", password: "${password}" }`
      yield* server.start(login("p"))
      const layer = (password: string) =>
        Client.layer({
          servers: server.url(`u:${password}`),
          logsTopic: "logs",
          queryTopic: "query",
          timeout: "1 second",
        })
      const append = Client.use((one) => Stream.runDrain(one.append([{ id: largest, log: "" }])))
      const refused = yield* append.pipe(Effect.provide(layer("q")), Effect.flip)
      assert.match(refused.message, /^can't connect to NATS at 127.0.0.1:\d+: the server refused the credentials$/)
      const lost = yield* Effect.andThen(server.reload(login("q")), append).pipe(
        Effect.provide(layer("p")),
        Effect.flip,
      )
      // The request may have been sent before the server read its configuration.
      const said =
        /^the connection to the server is lost; the server says: Authorization Violation(: the request may .*)?$/
      assert.match(lost.message, said)
    }).pipe(Effect.scoped, Effect.provide(ConfiguredNats.layer)),
  )

  it.live("the time-out starts anew with each page", () =>
    Effect.gen(function* () {
      const { client } = yield* withWorker((_request, _text, send) => {
        for (let page = 0; page < 4; page++) {
          const fields = { status: "ok", snapshot: "s", page, last: page === 3, entries: [entry(page + 1)] }
          setTimeout(() => send(fields), 250 * (page + 1))
        }
      }, "600 millis")
      const pages = yield* readAll({ id: largest }).pipe(Effect.provide(client))
      assert.deepStrictEqual(
        pages.flatMap((page) => page.entries),
        entries(1, 4),
      )
    }).pipe(Effect.provide(TestNats.layer)),
  )

  it.live("reads each entry once, though another worker starts the read again", () =>
    Effect.gen(function* () {
      const { client } = yield* withWorker((_request, _text, send) => {
        const page = (snapshot: string, number: number, last: boolean, from: number, to: number) =>
          send({ status: "ok", snapshot, page: number, last, entries: entries(from, to) })
        page("s", 0, false, 1, 3)
        page("s", 1, false, 4, 6)
        page("t", 0, false, 1, 2)
        page("t", 2, true, 8, 9)
        page("s", 2, false, 7, 8)
        page("t", 1, false, 3, 7)
      })
      const pages = yield* readAll({ id: largest }).pipe(Effect.provide(client))
      assert.deepStrictEqual(
        pages.flatMap((page) => page.entries),
        entries(1, 9),
      )
    }).pipe(Effect.provide(TestNats.layer)),
  )

  /** A worker with a log of `size` entries, whose cursor is the number of the last entry sent. */
  const logOf =
    (size: number, asked: Array<number | undefined>) =>
    (request: Request, _text: string, send: (fields: object) => void): void => {
      asked.push(request.limit)
      const after = Number(request.after ?? "0")
      const to = Math.min(size, after + (request.limit ?? size))
      const middle = Math.floor((after + to) / 2)
      send({ status: "ok", snapshot: "s", page: 0, last: false, entries: entries(after + 1, middle) })
      const next = to < size ? { next: String(to) } : {}
      send({ status: "ok", snapshot: "s", page: 1, last: true, entries: entries(middle + 1, to), ...next })
    }

  it.live("reads a long log in several requests, up to the limit", () =>
    Effect.gen(function* () {
      const asked: Array<number | undefined> = []
      const { client } = yield* withWorker(logOf(5_000, asked))
      const pages = yield* readAll({ id: largest }).pipe(Effect.provide(client))
      assert.deepStrictEqual(
        pages.flatMap((page) => page.entries),
        entries(1, 5_000),
      )
      assert.isAbove(asked.length, 1)
      assert.deepStrictEqual(
        pages.map((page) => [page.page, page.last]),
        pages.map((_, index) => [index, index === pages.length - 1]),
      )
      const limited = yield* readAll({ id: largest, limit: 300 }).pipe(Effect.provide(client))
      assert.strictEqual(limited.flatMap((page) => page.entries).length, 300)
      assert.strictEqual(limited.at(-1)?.next, "300")
      assert.isTrue(limited.slice(0, -1).every((page) => page.next === undefined))
    }).pipe(Effect.provide(TestNats.layer)),
  )

  it.live("the commands", () =>
    Effect.gen(function* () {
      const asked: Array<number | undefined> = []
      const log = logOf(20, asked)
      let position = 0
      const evil = "\u009b2J\u202e"
      const { url, logsTopic, queryTopic } = yield* withWorker((request, text, send) => {
        if (request.log === undefined) return log(request, text, send)
        if (request.log === "bad") return send({ status: "error", error: { code: "entry_rejected", message: "why" } })
        if (request.log === "evil") return send({ status: "error", error: { code: "entry_rejected", message: evil } })
        return send({ type: "append", status: "ok", position: ++position, seq: 1, timestamp: 1763922300123 })
      })
      const env = { NATS_URL: url, NATS_LOGS_TOPIC: logsTopic, NATS_QUERY_TOPIC: queryTopic }
      const run = Effect.fnUntraced(function* (args: ReadonlyArray<string>, input = "", terminal = false) {
        let output = ""
        const stdio = Stdio.layerTest({
          stdoutIsTerminal: Effect.succeed(terminal),
          stderrIsTerminal: Effect.succeed(terminal),
          stdin: Stream.make(Buffer.from(input)),
          stdout: () =>
            Sink.forEach((text: string | Uint8Array) =>
              Effect.sync(() => {
                output += String(text)
              }),
            ),
        })
        const command = Command.make("objectlog").pipe(Command.withSubcommands([appendCommand, queryCommand]))
        return yield* Effect.gen(function* () {
          const exit = yield* Effect.result(Command.runWith(command, { version: "0", renderErrors: false })(args))
          const errors = (yield* TestConsole.errorLines).map(String)
          return { output, errors, failure: Result.isFailure(exit) ? exit.failure : undefined }
        }).pipe(
          Effect.provide(
            Layer.mergeAll(
              stdio.pipe(Layer.provideMerge(NodeServices.layer)),
              TestConsole.layer,
              ConfigProvider.layer(ConfigProvider.fromEnv({ env })),
            ),
          ),
        )
      })
      const one = yield* run(["append", `${largest}`, "text"])
      assert.deepStrictEqual(one, { output: "position 1  2025-11-23T18:25:00.123Z\n", errors: [], failure: undefined })
      const refused = yield* run(["append", "1", "bad"])
      assert.strictEqual(refused.failure?.message, "entry_rejected: why")
      const many = yield* run(["append", "1", "-"], "a\nbad\n\nb\n")
      assert.deepStrictEqual(
        many.output.split("\n").map((line) => line.slice(0, 10)),
        ["position 2", "position 3", "position 4", ""],
      )
      assert.deepStrictEqual(many.errors, ["objectlog: line 2: entry_rejected: why"])
      assert.strictEqual(many.failure?.message, "1 of 4 appends was refused")
      const json = yield* run(["append", "1", "x", "--json"])
      assert.include(json.output, '{"type":"append","status":"ok","position":5,')
      assert.isDefined((yield* run(["append", "18446744073709551616", "x"])).failure)
      assert.isDefined((yield* run(["query", "1", "--from", "never"])).failure)
      const read = yield* run(["query", "1", "--limit", "2"])
      assert.strictEqual(read.output, "1970-01-01T00:00:00.010Z  entry 1\n1970-01-01T00:00:00.020Z  entry 2\n")
      assert.deepStrictEqual(read.errors, ["more: --after 2"])
      // A terminal gets none of what it would obey, and the same JSON; a pipe gets what came.
      const onTerminal = yield* run(["append", "1", "-", "--json"], "evil\n", true)
      assert.deepStrictEqual(onTerminal.errors, ["objectlog: line 1: entry_rejected: \\x9b2J\\u202e"])
      assert.notMatch(onTerminal.output, /[\u009b\u202e]/)
      const onPipe = yield* run(["append", "1", "-", "--json"], "evil\n")
      assert.deepStrictEqual(onPipe.errors, [`objectlog: line 1: entry_rejected: ${evil}`])
      assert.include(onPipe.output, evil)
      const message = (output: string) => (JSON.parse(output) as { error: { message: string } }).error.message
      assert.deepStrictEqual([message(onTerminal.output), message(onPipe.output)], [evil, evil])
      const asJson = yield* run(["query", "1", "--limit", "1", "--json"])
      assert.strictEqual(asJson.output, '{"position":1,"seq":101,"timestamp":10,"log":"entry 1"}\n')
    }).pipe(Effect.provide(TestNats.layer)),
  )
})
