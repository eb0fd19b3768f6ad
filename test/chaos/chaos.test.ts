/**
 * Goal: a short storm over real processes loses, doubles and reorders nothing. Method: the same run as `npm run chaos`, with
 * a fixed list of faults, each at a moment when the service is at work again, so that it does not depend on the machine.
 */
import { assert, layer } from "@effect/vitest"
import * as NodeServices from "@effect/platform-node/NodeServices"
import { Effect, FileSystem, Layer } from "effect"
import { chaosRun, type FaultTools } from "./chaosRun.ts"
import type { Kind } from "./faults.ts"
import { tableOf } from "./report.ts"
import { TestBroker } from "./TestBroker.ts"
import { TestShards } from "./TestShards.ts"

const servers = Layer.mergeAll(TestBroker.layerSingle, TestShards.layer({ diskMegabytes: 256 }), NodeServices.layer)

/** One step after the other; those of one step at the same time. */
const steps: ReadonlyArray<ReadonlyArray<Kind>> = [
  ["shard stopped", "broker link cut"],
  ["broker killed"],
  ["shard link server half-open", "workers rolled"],
  ["shard link slowed", "sessions terminated"],
  ["broker refuses the login", "shard read-only"],
  ["broker revokes a right", "shard failed over"],
  ["shard refuses the login", "shard revokes a right"],
]

const faults = ({ make, monitor, setAckWait, storm }: FaultTools) =>
  Effect.gen(function* () {
    // First those for which the broker must lose patience with a worker, within seconds; no worker starts meanwhile.
    yield* storm.strike(make("worker paused"))
    const kill = make("worker killed")
    yield* kill.begin
    yield* monitor.recovered(kill.shards)
    yield* setAckWait(30_000)
    yield* kill.end
    for (const kinds of steps) {
      yield* Effect.forEach(
        kinds.map((kind) => make(kind)),
        storm.strike,
        { concurrency: "unbounded", discard: true },
      )
    }
  })

layer(servers, { excludeTestServices: true, timeout: "60 seconds" })("chaos", (it) => {
  it.effect(
    "workers, broker, shards and links fail under load: nothing is lost, doubled or reordered",
    () =>
      Effect.gen(function* () {
        const fs = yield* FileSystem.FileSystem
        const folder = yield* fs.makeTempDirectoryScoped({ prefix: "objectlog-chaos-" })
        const lines: Array<string> = []
        const report = yield* chaosRun({
          seed: 7,
          workers: 3,
          objects: 40,
          rate: 150,
          ackWaitMillis: 2_000,
          folder,
          drainMillis: 60_000,
          show: (line) => lines.push(line),
          faults,
        })
        assert.deepStrictEqual(report.findings.problems, [], [...lines, tableOf(report)].join("\n"))
        assert.lengthOf(report.struck, 1 + steps.flat().length)
        assert.isAbove(report.findings.entries, 1_000)
        assert.isAbove(report.deadLetters, 0)
        assert.isAbove(report.reads.answered, 0)
      }),
    150_000,
  )
})
