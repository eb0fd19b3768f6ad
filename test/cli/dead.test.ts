/** `objectlog dead` on a real server, with letters that a real worker wrote. */
import { assert, describe, it, layer } from "@effect/vitest"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { jetstream, jetstreamManager } from "@nats-io/jetstream"
import { ConfigProvider, Effect, Layer, Result, Sink, Stdio, Stream } from "effect"
import { Command } from "effect/cli"
import { TestConsole } from "effect/testing"
import { openDeadLetters } from "../../src/letters/deadLetters.ts"
import type { Letter } from "../../src/letters/Letter.ts"
import { deadCommand } from "../../src/cli/dead.ts"
import { ageText, letterText, makeTable, parseSpan, payloadText } from "../../src/cli/letterText.ts"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { TestNats, TestPostgres } from "../../bench/servers/privateServers.ts"
import { RawNats } from "../foreign/RawNats.ts"
import { startWorker } from "../service/service.ts"
import { ForeignClient } from "../foreign/ForeignClient.ts"

const day = 86_400_000

const letterOf = (fields: Partial<Letter>): Letter => ({
  seq: 7,
  seqs: [7],
  refusedAt: BigInt(10 * day) * 1_000_000n,
  code: "invalid_message",
  reason: "log: expected a string, got 7",
  subject: "logs",
  stamp: { seq: 3, timestamp: BigInt(10 * day) * 1_000_000n },
  headers: [],
  payload: Buffer.from('{"id":18446744073709551615,"log":7}'),
  missingParts: 0,
  ...fields,
})

describe("text", () => {
  it("spans of time", () => {
    assert.deepStrictEqual(
      [-5, 0, 59_999, 60_000, 3_600_000, 2 * day].map((millis) => ageText(millis)),
      ["0s", "0s", "59s", "1m", "1h", "2d"],
    )
    assert.deepStrictEqual(["90s", "15m", "2h", "7d"].map(parseSpan), [90_000, 900_000, 7_200_000, 7 * day])
    for (const wrong of ["", "7", "d", "1w", "-1d", "1.5h"]) assert.isUndefined(parseSpan(wrong), wrong)
  })

  it("a table whose last column is cut at the terminal's width", () => {
    const table = makeTable(12 * day, 79)
    const long = letterOf({ seq: 1_234, reason: "x".repeat(100), payload: Buffer.from("no \u001b[31m") })
    assert.strictEqual(
      table([letterOf({}), long]),
      [
        " SEQ  AGE  SUBJECT  CODE                           OBJECT  BYTES  REASON",
        "   7   2d  logs     invalid_message  18446744073709551615     35  log: expected a str…",
        `1234   2d  logs     invalid_message                     -      8  ${"x".repeat(19)}…`,
        "",
      ].join("\n"),
    )
    assert.strictEqual(table([]), "")
  })

  it("a payload is never obeyed by a terminal and never ambiguous", () => {
    assert.strictEqual(payloadText(Buffer.from("é\n\\n\u001b[31m\u202e")), "é\\n\\\\n\\x1b[31m\\u202e")
    assert.strictEqual(payloadText(Buffer.from([0x61, 0xff, 0x5c, 0x0a])), "a\\xff\\x5c\\x0a")
  })

  it("one letter in full", () => {
    const letter = letterOf({
      headers: [["x\u001b", "é\u0007"].map((text) => Buffer.from(text).toString("latin1")) as [string, string]],
    })
    const shown = letterText(letter, 12 * day)
    assert.include(shown, "1970-01-11T00:00:00.000Z, 2d ago\n")
    assert.include(shown, "header        x\\x1b: é\\x07\n")
    assert.include(shown, '\n\n{"id":18446744073709551615,"log":7}\n')
    assert.include(letterText(letterOf({ missingParts: 1 }), 0), "(incomplete: 1 part missing)")
  })
})

const service = ForeignClient.layer.pipe(
  Layer.provideMerge(Layer.effectDiscard(startWorker)),
  Layer.provideMerge(Layer.mergeAll(TestNats.layer, TestPostgres.layer(2))),
)

interface Surroundings {
  readonly input?: string
  readonly terminal?: boolean
}

/** Runs the command; what it wrote as bytes, what it said on the error channel, and how it failed. */
const runWith = Effect.fnUntraced(function* (
  { input = "", terminal = false }: Surroundings,
  ...args: ReadonlyArray<string>
) {
  const { url } = yield* NatsServer
  const written: Array<Buffer> = []
  const stdio = Stdio.layerTest({
    stdin: Stream.make(Buffer.from(input)),
    stdoutIsTerminal: Effect.succeed(terminal),
    stderrIsTerminal: Effect.succeed(terminal),
    stdout: () =>
      Sink.forEach((text: string | Uint8Array) => Effect.sync(() => void written.push(Buffer.from(text as string)))),
  })
  const command = Command.make("objectlog").pipe(Command.withSubcommands([deadCommand]))
  return yield* Effect.gen(function* () {
    const exit = yield* Effect.result(
      Command.runWith(command, { version: "0", renderErrors: false })(["dead", ...args]),
    )
    const errors = (yield* TestConsole.errorLines).map(String)
    const failure = Result.isFailure(exit) ? String((exit.failure as Error).message) : undefined
    return { output: Buffer.concat(written), errors, failure }
  }).pipe(
    Effect.provide(
      Layer.mergeAll(
        stdio.pipe(Layer.provideMerge(NodeServices.layer)),
        TestConsole.layer,
        ConfigProvider.layer(ConfigProvider.fromEnv({ env: { NATS_URL: url } })),
      ),
    ),
  )
})

const run = (...args: ReadonlyArray<string>) => runWith({}, ...args)

interface Line {
  readonly seq: number
  readonly code: string
  readonly id?: number
  readonly request_seq?: number
  readonly request_timestamp?: number
  readonly headers?: ReadonlyArray<readonly [string, string]>
}

const list = (...args: ReadonlyArray<string>) =>
  Effect.map(run("list", ...args), ({ output }) =>
    output
      .toString()
      .split("\n")
      .filter((line) => line !== "")
      .map((line) => JSON.parse(line) as Line),
  )

/** Publishes with a raw header block and waits for the event of the refusal. */
const refused = Effect.fnUntraced(function* (subject: string, headers: Buffer, payload: Buffer) {
  const { url } = yield* NatsServer
  const client = yield* ForeignClient
  yield* Effect.acquireUseRelease(
    Effect.promise(() => RawNats.connect(url)),
    (raw) => Effect.promise(() => raw.publish(subject, headers, payload)),
    (raw) => Effect.promise(() => raw.close()),
  )
  return (yield* client.next).body.error!.code
})

const block = (...lines: ReadonlyArray<string | Buffer>) =>
  Buffer.concat([
    Buffer.from("NATS/1.0\r\n"),
    ...lines.flatMap((line) => [Buffer.from(line as string), Buffer.from("\r\n")]),
    Buffer.from("\r\n"),
  ])

layer(service, { excludeTestServices: true, timeout: "60 seconds" })("objectlog dead", (it) => {
  it.effect("lists, counts, shows and drops what a worker refused", () =>
    Effect.gen(function* () {
      const odd = Buffer.concat([Buffer.from("x-bytes: \u00e0 "), Buffer.from([0xff, 0xa0])])
      const headers = block(
        odd,
        "Nats-Expected-Last-Sequence: 0",
        "Original-Nats-X: 1",
        "Objectlog-Part: 1/2",
        "bad name: y",
      )
      yield* refused("logs", headers, Buffer.from('{"id":42,"log":7}'))
      yield* refused("query", block(), Buffer.from([0x7b, 0xff]))
      yield* refused("logs", block(), Buffer.from('{"id":43,"log":null}'))

      const all = yield* list()
      assert.deepStrictEqual(
        all.map(({ code, id, seq }) => ({ code, id, seq })),
        [
          { code: "invalid_message", id: 42, seq: 1 },
          { code: "invalid_json", id: undefined, seq: 2 },
          { code: "invalid_message", id: 43, seq: 3 },
        ],
      )
      const seqs = (lines: ReadonlyArray<Line>) => lines.map(({ seq }) => seq)
      assert.deepStrictEqual(seqs(yield* list("--code", "invalid_message")), [1, 3])
      assert.deepStrictEqual(seqs(yield* list("--subject", "query")), [2])
      assert.deepStrictEqual(seqs(yield* list("--id", "43")), [3])
      assert.deepStrictEqual(seqs(yield* list("--limit", "2")), [1, 2])
      assert.deepStrictEqual(seqs(yield* list("--since", "1h")), [1, 2, 3])
      assert.deepStrictEqual(seqs(yield* list("--since", String(Date.now() + day))), [])
      assert.deepStrictEqual(seqs(yield* list("--older-than", "1h")), [])
      const counts = (yield* run("list", "--counts")).output.toString().trim().split("\n")
      assert.deepStrictEqual(
        counts
          .map((line) => JSON.parse(line) as { code: string; letters: number })
          .map(({ code, letters }) => [code, letters]),
        [
          ["invalid_message", 2],
          ["invalid_json", 1],
        ],
      )

      const shown = JSON.parse((yield* run("show", "1", "--json")).output.toString()) as Line
      assert.deepStrictEqual(shown.headers, [
        ["x-bytes", "\udcc3\udca0 \udcff\udca0"],
        ["Nats-Expected-Last-Sequence", "0"],
        ["Original-Nats-X", "1"],
        ["Objectlog-Part", "1/2"],
        ["bad name", "y"],
      ])
      assert.deepStrictEqual((yield* run("show", "2", "--raw")).output, Buffer.from([0x7b, 0xff]))
      assert.include((yield* run("show", "2")).output.toString(), "\n\n{\\xff\n")

      assert.strictEqual((yield* run("drop")).failure, "expected the numbers of dead letters, or --all")
      assert.include((yield* run("drop", "--code", "invalid_json")).failure, "--all")
      assert.include((yield* run("drop", "--all")).failure, "--yes")
      const dropped = yield* run("drop", "2", "9")
      assert.strictEqual(String(dropped.output), "1 dead letter dropped\n")
      assert.deepStrictEqual(dropped.errors, ["objectlog: dead letter 9: there is none of that number"])
      assert.strictEqual(dropped.failure, "1 of 2 dead letters was not dropped")
      assert.strictEqual((yield* run("show", "2")).failure, "dead letter 2: there is none of that number")
      assert.strictEqual(String((yield* run("drop", "--all", "--id", "43", "--yes")).output), "1 dead letter dropped\n")
      assert.deepStrictEqual(seqs(yield* list()), [1])
      assert.strictEqual(String((yield* run("drop", "--all", "--yes")).output), "1 dead letter dropped\n")
      assert.deepStrictEqual(yield* list(), [])
    }),
  )

  it.effect("what somebody forged reaches a terminal in a form that it does not obey, and a pipe as it is", () =>
    Effect.gen(function* () {
      const { url } = yield* NatsServer
      const evil = "\u001b]0;x\u0007\u009b2J\u202e"
      const forged = block(
        "Objectlog-Code: co\u001b[31mde",
        "Objectlog-Reason: r\u001bc",
        "Objectlog-Subject: s\u0007",
        "Objectlog-Seq: 1",
        "Objectlog-Timestamp: 1",
        "Nats-Msg-Id: s\u0007-1-1",
      )
      yield* Effect.acquireUseRelease(
        Effect.promise(() => RawNats.connect(url)),
        (raw) => Effect.promise(() => raw.publish("dead.logs", forged, Buffer.from(evil))),
        (raw) => Effect.promise(() => raw.close()),
      )
      const [{ seq }] = (yield* list("--json")) as [Line]
      const show = ["show", String(seq), "--json"]
      const commands = [["list"], ["list", "--json"], ["list", "--counts"], ["list", "--counts", "--json"], show]
      for (const args of commands) {
        const shown = String((yield* runWith({ terminal: true }, ...args)).output)
        assert.notMatch(shown.replaceAll("\n", ""), /\p{Cc}|\p{Bidi_Control}/u, args.join(" "))
        assert.match(shown, /co(?:\\x|\\u00)1b\[31mde/, args.join(" "))
      }
      const piped = String((yield* run(...show)).output)
      assert.include(piped, "\u009b2J\u202e")
      assert.deepStrictEqual(
        JSON.parse(String((yield* runWith({ terminal: true }, ...show)).output)),
        JSON.parse(piped),
      )
      yield* run("drop", "--all", "--yes")
    }),
  )

  it.effect("a letter in parts is one: shown whole, dropped with all of them, by any of their numbers", () =>
    Effect.gen(function* () {
      const { connection } = yield* ForeignClient
      const payload = Buffer.from("x".repeat(connection.info!.max_payload - 40))
      assert.strictEqual(yield* refused("logs", block(Buffer.from([0x61, 0x3a, 0xfe])), payload), "invalid_json")
      assert.strictEqual(yield* refused("logs", block(), Buffer.from("x")), "invalid_json")
      const [first, second, ...rest] = yield* list()
      assert.lengthOf(rest, 0)
      for (const seq of [first!.seq, first!.seq + 1]) {
        assert.isTrue((yield* run("show", String(seq), "--raw")).output.equals(payload))
      }
      const shown = JSON.parse((yield* run("show", String(first!.seq), "--json")).output.toString()) as Line
      assert.deepStrictEqual(shown.headers, [["a", "\udcfe"]])
      assert.strictEqual(String((yield* run("drop", String(first!.seq + 1))).output), "1 dead letter dropped\n")
      assert.deepStrictEqual(
        (yield* list()).map(({ seq }) => seq),
        [second!.seq],
      )
      yield* run("drop", "--all", "--yes")
    }),
  )

  it.effect("a corrected append goes to its original place; one that is refused again is a new letter", () =>
    Effect.gen(function* () {
      const client = yield* ForeignClient
      yield* refused("logs", block("Nats-Msg-Id: m-77"), Buffer.from('{"id":77,"log":7,"request_id":"r"}'))
      const later = yield* client.append('{"id":77,"log":"later"}')
      const [letter] = yield* list()

      assert.strictEqual(String((yield* run("retry", String(letter!.seq))).output), "1 dead letter retried\n")
      assert.deepInclude((yield* client.next).body, { status: "error", request_id: "r" })
      const [again, ...rest] = yield* list()
      assert.lengthOf(rest, 0)
      assert.isAbove(again!.seq, letter!.seq)
      assert.deepStrictEqual(
        { ...again!, seq: 0 },
        { ...letter!, seq: 0, refused: (again as Line & { refused: number }).refused },
      )

      const fixed = '{"id":77,"log":"fixed","request_id":"r"}'
      const done = yield* runWith({ input: fixed }, "retry", String(again!.seq), "--payload", "-")
      assert.deepStrictEqual([String(done.output), done.failure], ["1 dead letter retried\n", undefined])
      const event = yield* client.next
      assert.deepInclude(event.body, {
        status: "ok",
        position: 2,
        seq: letter!.request_seq!,
        timestamp: letter!.request_timestamp!,
        request_id: "r",
      })
      const [page] = yield* client.read('{"id":77}')
      assert.deepStrictEqual(
        page!.body.entries!.map(({ log, position }) => [position, log]),
        [
          [2, "fixed"],
          [1, "later"],
        ],
      )
      assert.isBelow(event.body.seq!, later.body.seq!)
      // The message id came along. (The broker drops a repetition by itself for a moment: then it is published again.)
      yield* Effect.promise(() =>
        jetstream(client.connection).publish("logs", '{"id":77,"log":"once more"}', { msgID: "m-77" }),
      ).pipe(Effect.repeat({ while: (ack) => ack.duplicate }))
      assert.deepInclude((yield* client.next).body, { duplicate: true, position: 2 })
      assert.deepStrictEqual(yield* list(), [])
      assert.strictEqual((yield* run("retry", String(again!.seq))).failure, "1 of 1 dead letter was not retried")
    }),
  )

  it.effect("a retry that ended before the letter was deleted is repeated without harm", () =>
    Effect.gen(function* () {
      const client = yield* ForeignClient
      yield* refused("logs", block(), Buffer.from('{"id":78,"log":8}'))
      const jsm = yield* Effect.promise(() => jetstreamManager(client.connection))
      const subjects = { logsTopic: "logs", queryTopic: "query", deadTopic: "dead" }
      const letters = (yield* openDeadLetters(client.connection, jsm, subjects))!
      const [letter] = yield* Stream.runCollect(letters.read())
      assert.isEmpty(yield* Stream.runCollect(letters.read({ upTo: letter!.seq - 1 })))
      // Two different messages for one append, as when the broker's window has passed in between.
      for (const text of ['{"id":78,"log":"eight"}', '{"id":78,"log":"eight" }']) {
        yield* letters.retry(letter!, Buffer.from(text))
        yield* letters.retry(letter!, Buffer.from(text))
        assert.deepInclude((yield* client.next).body, { status: "ok", position: 1, seq: letter!.stamp!.seq })
      }
      assert.lengthOf((yield* client.read('{"id":78}'))[0]!.body.entries!, 1)
      assert.deepStrictEqual(yield* list(), [])
    }).pipe(Effect.scoped),
  )

  it.effect("a read is asked anew; what can't be retried says why and stays", () =>
    Effect.gen(function* () {
      const client = yield* ForeignClient
      yield* refused(
        "query",
        block("Nats-Expected-Stream: objectlog_query", "x: y"),
        Buffer.from('{"id":79,"limit":0}'),
      )
      const [letter] = yield* list()
      yield* runWith({ input: '{"id":79,"limit":1,"request_id":"q"}' }, "retry", String(letter!.seq), "--payload", "-")
      assert.deepInclude((yield* client.next).body, { type: "query", status: "ok", last: true, request_id: "q" })
      assert.deepStrictEqual(yield* list(), [])

      const room = client.connection.info!.max_payload
      yield* refused("logs", block(), Buffer.from(`{"id":79,"log":7,"x":"${"x".repeat(room - 100)}"}`))
      yield* client.publish("dead.by.hand", "hello")
      yield* client.publish("logs", '{"id":80}')
      yield* client.next
      const retried = yield* run("retry", "--all")
      assert.strictEqual(String(retried.output), "1 dead letter retried\n")
      assert.sameMembers(
        retried.errors.map((line) => line.replace(/letter \d+/, "letter")),
        [
          `objectlog: dead letter: the request and the headers of a retry exceed the ${room} bytes that the server takes`,
          "objectlog: dead letter: is foreign: objectlog did not write it",
        ],
      )
      assert.strictEqual(retried.failure, "2 of 3 dead letters were not retried")
      assert.strictEqual((yield* client.next).body.error!.code, "invalid_message")
      assert.lengthOf(yield* list(), 3)
      assert.include((yield* run("retry", "--all", "--payload", "x")).failure, "--payload")
      yield* run("drop", "--all", "--yes")
    }),
  )

  it.effect("more letters than one request brings, and what somebody else published there", () =>
    Effect.gen(function* () {
      const client = yield* ForeignClient
      for (let i = 0; i < 600; i++) yield* client.publish("logs", `{"id":${i}}`)
      for (let i = 0; i < 600; i++) yield* client.next
      yield* client.publish("dead.by.hand", "hello")
      yield* Effect.promise(() => client.connection.flush())
      const lines = yield* list()
      assert.lengthOf(lines, 601)
      assert.strictEqual(new Set(lines.slice(0, -1).map(({ id }) => id)).size, 600)
      assert.strictEqual(lines.at(-1)!.code, "foreign")
      // Two at once get in each other's way: what one finds gone is dropped all the same.
      const both = yield* Effect.all([run("drop", "--all", "--yes"), run("drop", "--all", "--yes")], { concurrency: 2 })
      for (const { errors, failure } of both)
        assert.deepStrictEqual({ errors, failure }, { errors: [], failure: undefined })
      assert.deepStrictEqual(yield* list(), [])
    }),
  )
})
