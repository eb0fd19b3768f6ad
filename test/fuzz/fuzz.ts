/**
 * The fuzzer: real workers, a real nats-server and real shards get messages of all kinds, and every one that the broker has
 * stored is accounted for. A valid append is an entry, to the character and in order; a valid read has its pages; anything
 * else has exactly one error event and one dead letter that gives the request back byte for byte.
 */
import { jetstreamManager } from "@nats-io/jetstream"
import type { NatsConnection } from "@nats-io/transport-node"
import { Arbitrary, Effect, Stream } from "effect"
import { readFile } from "node:fs/promises"
import { openDeadLetters } from "../../src/letters/deadLetters.ts"
import type { Letter } from "../../src/letters/Letter.ts"
import { fromStored } from "../../src/contract/LogEntry.ts"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { PostgresServers } from "../../src/embedded/PostgresServers.ts"
import { connectTo } from "../../bench/servers/connectTo.ts"
import { onShard } from "../../bench/servers/onShard.ts"
import { startWorkerProcess } from "../service/service.ts"
import { type Body, checkAll, type Row } from "./check.ts"
import type { Sent } from "./Sent.ts"
import { digest, expect } from "./expect.ts"
import { messages } from "./messages.ts"
import { idText, parseEvent } from "../foreign/Event.ts"
import { follow } from "../foreign/follow.ts"
import { RawNats } from "../foreign/RawNats.ts"

export interface Options {
  readonly messages: number
  readonly seed: number
  readonly workers: number
}

export interface Report {
  /** How often each outcome came, by kind of payload and by kind of headers. */
  readonly byPayload: ReadonlyMap<string, ReadonlyMap<string, number>>
  readonly byHeaders: ReadonlyMap<string, ReadonlyMap<string, number>>
  /** What is not as it must be. */
  readonly problems: ReadonlyArray<string>
  readonly seconds: number
  /** Highest resident memory of a worker, in MiB. */
  readonly workerMemory: number
}

/** Sent and not confirmed yet, at most. */
const windowMessages = 2_000
const windowBytes = 32 * 1024 * 1024

/** Messages drawn at a time. */
const batch = 1_000

/** The broker's consumers make no progress for so long: a stall. */
const stallMillis = 90_000

const sendAll = Effect.fnUntraced(function* (raw: RawNats, options: Options) {
  const run = `f${options.seed}`
  const limits = { maxPayload: raw.maxPayload, responseTopic: "response" }
  const arbitrary = messages(raw.maxPayload, run)
  const sent: Array<Sent> = []
  let [open, openBytes] = [0, 0]
  let wake = () => {}
  const confirmedBelow = (count: number, bytes: number): Promise<void> | undefined =>
    open <= count && openBytes <= bytes
      ? undefined
      : new Promise((resolve) => {
          wake = () => {
            if (open <= count && openBytes <= bytes) resolve()
          }
        })
  for (let start = 0; start < options.messages; start += batch) {
    const count = Math.min(batch, options.messages - start)
    const seed = `${options.seed}-${start}`
    const drawn = yield* Arbitrary.sampleEffect(arbitrary, { seed, count }).pipe(Effect.orDie)
    yield* Effect.promise(async () => {
      for (const [at, make] of drawn.entries()) {
        const message = make(start + at)
        const size = message.payload.byteLength + (message.block?.byteLength ?? 0)
        const expected = expect(message, limits)
        await confirmedBelow(windowMessages, windowBytes)
        open++
        openBytes += size
        void raw.publish(message.subject, message.block, message.payload).then((answer) => {
          sent.push(
            answer.stored
              ? { expected, seq: answer.seq, reason: "" }
              : { expected, seq: undefined, reason: answer.reason },
          )
          open--
          openBytes -= size
          wake()
        })
      }
    })
  }
  yield* Effect.promise(async () => confirmedBelow(0, 0))
  return sent
})

/** Waits until the workers are done with both streams, and fails where they stand still. */
const drained = Effect.fnUntraced(function* (connection: NatsConnection) {
  const jsm = yield* Effect.promise(() => jetstreamManager(connection))
  for (const stream of ["objectlog_logs", "objectlog_query"]) {
    let [last, since] = ["", Date.now()]
    for (;;) {
      const info = yield* Effect.promise(() => jsm.consumers.info(stream, "objectlog"))
      if (info.num_pending === 0 && info.num_ack_pending === 0) break
      const now = `${info.num_pending} ${info.num_ack_pending} ${info.ack_floor.stream_seq}`
      if (now !== last) [last, since] = [now, Date.now()]
      if (Date.now() - since > stallMillis) return yield* Effect.die(new Error(`${stream} stalls: ${now}`))
      yield* Effect.sleep("50 millis")
    }
  }
})

/** All events of the response topic, under the id of their message. */
const readEvents = Effect.fnUntraced(function* (servers: string) {
  const bodies = new Map<string, Array<Body>>()
  const { caughtUp, missed } = yield* follow(servers, "objectlog_response", (message) => {
    if (message.subject !== "response") return
    const [subject, seq] = message.header("Nats-Msg-Id").split("-")
    const name = `${subject} ${seq}`
    const text = message.text()
    const body = { ...(parseEvent(message.subject, text).body as unknown as Body), idText: idText(text) }
    bodies.set(name, [...(bodies.get(name) ?? []), body])
  })
  yield* caughtUp
  if (missed() > 0)
    return yield* Effect.die(new Error("the response stream has dropped events: fewer messages, please"))
  return bodies
}, Effect.scoped)

const readLetters = Effect.fnUntraced(function* (connection: NatsConnection) {
  const jsm = yield* Effect.promise(() => jetstreamManager(connection))
  const letters = yield* openDeadLetters(connection, jsm, { logsTopic: "logs", queryTopic: "query", deadTopic: "dead" })
  return letters === undefined ? ([] as ReadonlyArray<Letter>) : yield* Stream.runCollect(letters.read())
})

/** All entries of all shards, by sequence number. */
const readRows = Effect.gen(function* () {
  const { shards } = yield* PostgresServers
  const rows = new Map<number, Row>()
  for (const shard of shards) {
    const stored = yield* onShard(
      shard,
      (sql) =>
        sql<{
          object_id: bigint
          timestamp: bigint
          seq: bigint
          position: bigint
          log: string
          escaped: boolean
        }>`select object_id, timestamp, seq, position, log, escaped from log_entries`,
    )
    for (const row of stored) {
      const log = fromStored(row.log, row.escaped)
      rows.set(Number(row.seq), {
        id: BigInt.asUintN(64, row.object_id),
        timestamp: row.timestamp,
        position: Number(row.position),
        log: digest(JSON.stringify(log)),
      })
    }
  }
  return rows
})

export const fuzz = Effect.fnUntraced(function* (options: Options) {
  const nats = yield* NatsServer
  const started = performance.now()
  const workers = yield* Effect.all(
    Array.from({ length: options.workers }, () => startWorkerProcess),
    { concurrency: "unbounded" },
  )
  const raw = yield* Effect.acquireRelease(
    Effect.promise(() => RawNats.connect(nats.url)),
    (open) => Effect.promise(() => open.close()),
  )
  const connection = yield* Effect.acquireRelease(
    Effect.promise(() => connectTo(nats.url)),
    (open) => Effect.promise(() => open.close()),
  )
  const sent = yield* sendAll(raw, options)
  yield* drained(connection)
  const events = yield* readEvents(nats.url)
  const letters = yield* readLetters(connection)
  const rows = yield* readRows
  const memory = yield* Effect.forEach(workers, ({ pid }) => residentPeak(pid))
  const { byHeaders, byPayload, problems } = checkAll(sent, events, letters, rows)
  // A worker that had ended would not end with 0 now.
  const ends = yield* Effect.forEach(workers, ({ stop }) => stop("SIGTERM", 20_000), { concurrency: "unbounded" })
  const crashed = ends.flatMap((end, at) =>
    end === 0 ? [] : [`worker ${at} ended with ${end}: ${workers[at]!.output()}`],
  )
  const report: Report = {
    byPayload,
    byHeaders,
    problems: [...crashed, ...problems],
    seconds: (performance.now() - started) / 1_000,
    workerMemory: Math.max(...memory),
  }
  return report
}, Effect.scoped)

const residentPeak = (pid: number) =>
  Effect.promise(async () => {
    const status = await readFile(`/proc/${pid}/status`, "utf8").catch(() => "")
    return Math.round(Number(/VmHWM:\s+(\d+)/.exec(status)?.[1] ?? 0) / 1_024)
  })
