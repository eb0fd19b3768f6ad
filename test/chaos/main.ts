/**
 * `npm run chaos -- --minutes N --seed S [--cluster] [--kinds a,b]`: real workers, broker and shards under load and faults, and a check
 * of everything in the end. Exits with 1 when anything was lost, doubled, out of order or otherwise wrong.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Console, Effect, Layer } from "effect"
import { parseArgs } from "node:util"
import { chaosRun } from "./chaosRun.ts"
import type { Kind } from "./faults.ts"
import { hotObject, isolationTable, stoppedShard } from "./isolation.ts"
import { tableOf } from "./report.ts"
import { rage } from "./Storm.ts"
import { TestBroker } from "./TestBroker.ts"
import { TestShards } from "./TestShards.ts"

const { values: options } = parseArgs({
  options: {
    minutes: { type: "string", default: "2" },
    seed: { type: "string", default: String(Date.now() % 1_000_000) },
    cluster: { type: "boolean", default: false },
    kinds: { type: "string" },
    isolation: { type: "boolean", default: false },
    workers: { type: "string", default: "3" },
    objects: { type: "string", default: "200" },
    rate: { type: "string" },
    "ack-wait": { type: "string", default: "20" },
    drain: { type: "string", default: "180" },
    folder: { type: "string" },
  },
})
const seed = Number(options.seed)
const millis = Number(options.minutes) * 60_000
const folder =
  options.folder ??
  `.objectlog/chaos/${options.isolation ? "isolation" : `seed-${seed}`}${options.cluster ? "-cluster" : ""}`
// A tenth of the run each, and minutes in one that lasts ten or more.
const longMillis = Math.min(millis / 10, 180_000)

/** Of the faults that can be had those whose names begin with one of the wanted. */
const chosen = (kinds: ReadonlyArray<Kind>): ReadonlyArray<Kind> => {
  const wanted = options.kinds?.split(",")
  const found = wanted === undefined ? kinds : kinds.filter((kind) => wanted.some((name) => kind.startsWith(name)))
  if (found.length > 0) return found
  console.error(`chaos: --kinds: expected some of ${kinds.join(", ")}, got ${JSON.stringify(options.kinds)}`)
  process.exit(2)
}

const show = (line: string) => console.log(line)

const isolation = Effect.gen(function* () {
  const settings = { seed, rate: Number(options.rate ?? 3_000), show }
  const outage = yield* stoppedShard({ ...settings, millis, folder: `${folder}/stopped-shard` })
  yield* Console.log(`\nOne of three shards stopped for ${options.minutes} minutes:\n\n${isolationTable(outage)}\n`)
  const hotMillis = Math.min(60_000, millis / 5)
  const hot = yield* hotObject({ ...settings, millis: hotMillis, folder: `${folder}/hot-object` })
  yield* Console.log(`\nOne object with nine tenths of the load on 4 workers:\n\n${isolationTable(hot)}\n`)
  if (![...outage, ...hot].every(({ holds }) => holds)) process.exitCode = 1
})

const chaos = Effect.gen(function* () {
  const report = yield* chaosRun({
    seed,
    workers: Number(options.workers),
    objects: Number(options.objects),
    rate: Number(options.rate ?? 800),
    ackWaitMillis: Number(options["ack-wait"]) * 1_000,
    folder,
    drainMillis: Number(options.drain) * 1_000,
    show,
    faults: ({ kinds, make, monitor, random, storm }) =>
      rage(storm, monitor, random, {
        kinds: chosen(kinds),
        millis,
        make: (kind) => make(kind, longMillis),
        longAt: [millis * 0.2, millis * 0.6],
      }),
  })
  yield* Console.log(`\n${tableOf(report)}\n`)
  const { problems } = report.findings
  if (problems.length === 0) return yield* Console.log(`nothing lost, doubled or reordered; seed ${seed}`)
  yield* Console.log(`${problems.length} violations, all of them and the logs in ${folder}; seed ${seed}`)
  yield* Effect.forEach(problems.slice(0, 20), (problem) => Console.log(`  ${problem}`), { discard: true })
  process.exitCode = 1
})

const servers = Layer.mergeAll(
  options.cluster ? TestBroker.layerCluster : TestBroker.layerSingle,
  TestShards.layer({ diskMegabytes: 768 }),
)

NodeRuntime.runMain(
  (options.isolation ? isolation : chaos).pipe(
    Effect.provide(Layer.mergeAll(servers, NodeServices.layer)),
    // A connection through a link that was half-open may linger for as long as TCP has patience.
    Effect.tap(() => Effect.sync(() => process.exit())),
  ),
)
