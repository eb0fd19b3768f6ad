/**
 * What a worker takes at most, at mixes of messages and outages that fill all that it may hold: shards refuse, or hang, while more
 * comes than it can keep; then they are back, and all of it goes through.
 */
import { jetstreamManager } from "@nats-io/jetstream"
import { headers, type MsgHdrs, type NatsConnection } from "@nats-io/transport-node"
import { Effect, Layer, Schedule } from "effect"
import { NatsServer } from "../../src/embedded/NatsServer.ts"
import { PostgresServers } from "../../src/embedded/PostgresServers.ts"
import { makeProxy, type TcpProxy } from "../servers/TcpProxy.ts"
import { connectTo } from "../servers/connectTo.ts"
import { onShard } from "../servers/onShard.ts"
import { TestNats, TestPostgres } from "../servers/privateServers.ts"
import { residentMemory } from "../Processes.ts"
import { add } from "../Report.ts"
import { measurementMax, startProcess } from "../Rig.ts"

const scenario = "Memory"

/** What README.md says under "Memory", in MiB, and what a measurement may find. */
const documented = 640
const tolerance = 1.2

interface Message {
  readonly count: number
  readonly log: string
  readonly headers?: MsgHdrs
}

interface Mix {
  readonly what: string
  readonly shards: number
  /** The others are there all the time. */
  readonly down: number
  readonly how: "cut" | "stalled"
  readonly message: Message
}

/** Headers of so many bytes. */
const longHeaders = (bytes: number): MsgHdrs => {
  const made = headers()
  made.set("note", "h".repeat(bytes))
  return made
}

const small: Message = { count: 25_000, log: "x".repeat(100), headers: longHeaders(60_000) }
/** A megabyte in the broker, and two thirds of that as text, whose characters take two bytes each. */
const large: Message = { count: 1_500, log: "語".repeat(340_000) }
const ordinary: Message = { count: 300_000, log: "x".repeat(100) }

const mixes: ReadonlyArray<Mix> = [
  { what: "8 shards refuse, headers of 60 kB", shards: 8, down: 8, how: "cut", message: small },
  { what: "8 shards hang, headers of 60 kB", shards: 8, down: 8, how: "stalled", message: small },
  { what: "8 of 16 shards refuse, headers of 60 kB", shards: 16, down: 8, how: "cut", message: small },
  { what: "16 shards refuse, texts of 1 MB", shards: 16, down: 16, how: "cut", message: large },
  { what: "8 of 16 shards refuse, texts of 1 MB", shards: 16, down: 8, how: "cut", message: large },
  { what: "8 shards hang, texts of 1 MB", shards: 8, down: 8, how: "stalled", message: large },
  { what: "2 shards, thousands of objects, full drain", shards: 2, down: 0, how: "cut", message: ordinary },
]

const flood = (connection: NatsConnection, { count, headers: all, log }: Message) =>
  Effect.promise(async () => {
    for (let i = 0; i < count; i++) {
      connection.publish("logs", `{"id":${i % 5_000},"log":"${log}"}`, all === undefined ? {} : { headers: all })
      if (i % 100 === 99) await connection.flush()
    }
    await connection.flush()
  })

/** Requests that are not finished, parked ones included. */
const left = (connection: NatsConnection) =>
  Effect.promise(async () => {
    const jsm = await jetstreamManager(connection, { checkAPI: false })
    let count = 0
    for await (const stream of jsm.streams.list()) {
      if (stream.config.name === "objectlog_response") continue
      for await (const consumer of jsm.consumers.list(stream.config.name)) {
        count += consumer.num_pending + consumer.num_ack_pending
      }
    }
    return count
  })

const measure = ({ down, how, message, shards: count, what }: Mix) =>
  Effect.gen(function* () {
    const { shards } = yield* PostgresServers
    const { url } = yield* NatsServer
    const server = shards[0]!
    const links: Array<TcpProxy> = []
    const specs = yield* Effect.forEach(Array.from({ length: count }).keys(), (index) =>
      Effect.gen(function* () {
        const database = `memory_${index}`
        yield* onShard(server, (sql) => sql`create database ${sql(database)}`)
        const link = yield* makeProxy(server.port)
        links.push(link)
        return { ...server, name: `s${index}`, port: link.port, database }
      }),
    )
    const connection = yield* Effect.acquireRelease(
      Effect.promise(() => connectTo(url)),
      (open) => Effect.promise(() => open.close()),
    )
    const worker = yield* startProcess("objectlog", url, specs, 0)
    const pid = worker.pid!
    for (const link of links.slice(0, down)) link.set({ kind: how })
    yield* flood(connection, message)
    // Whatever it takes in the outage, it has taken when its shards are found to be down and what it could park is parked.
    if (down > 0) yield* Effect.sleep("25 seconds")
    const outage = yield* residentMemory(pid, "VmHWM")
    for (const link of links) link.set({ kind: "open" })
    yield* left(connection).pipe(
      Effect.repeat({ until: (found) => found === 0, schedule: Schedule.spaced("1 second") }),
    )
    const highest = yield* residentMemory(pid, "VmHWM")
    if (worker.exitCode !== null || Number.isNaN(highest)) return yield* Effect.die(new Error("the worker has ended"))
    const bar = down === 0 ? 250 : Math.round(documented * tolerance)
    yield* add({ scenario, what: `${what}: RSS in the outage, highest`, value: outage, unit: "MiB" })
    yield* add({
      scenario,
      what: `${what}: RSS until all is through, highest`,
      value: highest,
      unit: "MiB",
      bar: { text: `≤ ${bar} MiB`, reached: highest <= bar },
    })
  }).pipe(
    Effect.scoped,
    Effect.timeoutOrElse({
      duration: measurementMax,
      orElse: () => Effect.die(new Error(`${what}: did not end within ${measurementMax}`)),
    }),
    Effect.provide(Layer.fresh(Layer.mergeAll(TestNats.layer, TestPostgres.layer(1)))),
  )

export const runMemory = Effect.forEach(mixes, measure, { discard: true })
