import { defineConfig } from "vitest/config"
import { BaseSequencer } from "vitest/node"

/** Those that take longest, so that none of them is left for the end, alone; one that waits beside one that computes. */
const first = [
  "chaos/chaos",
  "simulation/simulation",
  "observe/worker",
  "service/faults",
  "embedded/PostgresServers",
  "shard/ShardPoolLive",
  "load/load",
  "embedded/start",
  "service/workers",
  "service/parking",
  "service/traces",
  "broker/accidents",
  "pipeline/parking",
]

class LongestFirst extends BaseSequencer {
  override async sort(files: Parameters<BaseSequencer["sort"]>[0]): ReturnType<BaseSequencer["sort"]> {
    const rank = (id: string) => first.findIndex((name) => id.endsWith(`/${name}.test.ts`)) >>> 0
    return (await super.sort(files)).toSorted((a, b) => rank(a.moduleId) - rank(b.moduleId))
  }
}

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    globalSetup: "test/setup.ts",
    sequence: { sequencer: LongestFirst },
    testTimeout: 60_000,
    hookTimeout: 60_000,
    maxWorkers: 2,
    // The simulation makes much that is short-lived: a third less time.
    execArgv: ["--max-semi-space-size=64"],
  },
})
