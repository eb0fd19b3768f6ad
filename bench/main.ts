/**
 * `npm run bench`: starts everything on loopback, measures, checks that every entry is there once, and prints tables;
 * `results.json` and `load.svg` go to `--out`. README.md beside this file explains each figure.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Console, Effect, FileSystem, Layer, Path } from "effect"
import { cpus, totalmem } from "node:os"
import { parseArgs } from "node:util"
import { plot } from "./plot.ts"
import { Report, tables } from "./Report.ts"
import { onShard } from "./servers/onShard.ts"
import { onFreshServers, Rig } from "./Rig.ts"
import { runDrain } from "./scenarios/drain.ts"
import { runGrowth } from "./scenarios/growth.ts"
import { runIdle } from "./scenarios/idle.ts"
import { runMemory } from "./scenarios/memory.ts"
import { runSettings } from "./scenarios/settings.ts"
import { runReads } from "./scenarios/reads.ts"
import { type Curves, runSteady } from "./scenarios/steady.ts"

/** Without `memory`, which takes as long as all others together. */
const usual = ["drain", "steady", "growth", "reads", "idle", "settings"]
const all = [...usual, "memory"]

const { values: options } = parseArgs({
  options: {
    only: { type: "string", default: usual.join(",") },
    appends: { type: "string", default: "200000" },
    rounds: { type: "string", default: "3" },
    seconds: { type: "string", default: "10" },
    entries: { type: "string", default: "10000000" },
    objects: { type: "string", default: "1000000" },
    read: { type: "string", default: "1000000" },
    rate: { type: "string", default: "40000" },
    out: { type: "string", default: "bench" },
  },
})
const chosen = new Set(options.only.split(","))
for (const name of chosen) {
  if (!all.includes(name)) {
    process.stderr.write(`bench: --only: expected ${all.join(", ")}, got ${JSON.stringify(name)}\n`)
    process.exit(2)
  }
}
const appends = Number(options.appends)
const seconds = Number(options.seconds)
const rounds = Number(options.rounds)

/** The machine, the versions, and the settings that decide durability. */
const environment = onFreshServers(
  Effect.gen(function* () {
    const { connection, shards } = yield* Rig
    const setting = (name: string) =>
      onShard(shards[0]!, (sql) =>
        Effect.map(sql<{ value: string }>`select current_setting(${name}) as value`, ([row]) => row!.value),
      )
    return {
      machine: `${cpus().length} × ${cpus()[0]!.model}, ${Math.round(totalmem() / 1024 ** 3)} GiB, ${process.platform}`,
      node: process.version,
      natsServer: connection.info!.version,
      postgres: yield* setting("server_version"),
      fsync: yield* setting("fsync"),
      synchronousCommit: yield* setting("synchronous_commit"),
    }
  }),
)

const program = Effect.gen(function* () {
  const fs = yield* FileSystem.FileSystem
  const path = yield* Path.Path
  const machine = yield* environment
  const subtitle = `${machine.machine}; Node ${machine.node}, nats-server ${machine.natsServer}, PostgreSQL ${machine.postgres}; fsync ${machine.fsync}, synchronous_commit ${machine.synchronousCommit}`
  process.stderr.write(`${subtitle}\n`)

  let curves: Curves | undefined
  let drainRate = Number(options.rate)
  if (chosen.has("drain")) drainRate = yield* runDrain({ appends, rounds })
  if (chosen.has("steady")) curves = yield* runSteady(drainRate, seconds, rounds)
  if (chosen.has("growth")) yield* runGrowth({ entries: Number(options.entries), objects: Number(options.objects) })
  if (chosen.has("reads")) yield* runReads({ entries: Number(options.read), appends })
  if (chosen.has("idle")) yield* runIdle(seconds)
  if (chosen.has("settings")) yield* runSettings({ appends, rounds })
  if (chosen.has("memory")) yield* runMemory

  const figures = yield* Report.useSync((report) => report.figures())
  const text = JSON.stringify({ date: new Date().toISOString(), ...machine, options, figures, load: curves }, null, 2)
  yield* fs.makeDirectory(options.out, { recursive: true })
  yield* fs.writeFileString(path.join(options.out, "results.json"), `${text}\n`)
  if (curves !== undefined) yield* fs.writeFileString(path.join(options.out, "load.svg"), plot(curves, subtitle))
  yield* Console.log(`\n${subtitle}\n\n${tables(figures)}`)
})

NodeRuntime.runMain(program.pipe(Effect.provide(Layer.merge(Report.layer, NodeServices.layer))))
