import { existsSync, globSync } from "node:fs"
import { defineConfig } from "vitest/config"
import { BaseSequencer } from "vitest/node"

/** Those that take longest, so that none of them is left for the end, alone; one that waits beside one that computes. */
const first = [
  "chaos/chaos",
  "embedded/fullDisk",
  "observe/worker",
  "broker/rights",
  "simulation/simulation",
  "embedded/start",
  "service/fullStore",
  "embedded/PostgresServers",
  "service/faults",
  "shard/ShardPoolLive",
  "service/parking",
  "pipeline/slow",
  "cli/process",
  "service/workers",
  "load/load",
  "service/traces",
  "broker/accidents",
  "pipeline/parking",
]

// A renamed file must be renamed here too: otherwise it would run late, or with a process of its own, and nobody would notice.
for (const name of first) {
  if (!existsSync(`test/${name}.test.ts`)) throw new Error(`vitest.config.ts: there is no test/${name}.test.ts`)
}

class LongestFirst extends BaseSequencer {
  override async sort(files: Parameters<BaseSequencer["sort"]>[0]): ReturnType<BaseSequencer["sort"]> {
    const rank = (id: string) => first.findIndex((name) => id.endsWith(`/${name}.test.ts`)) >>> 0
    return (await super.sort(files)).toSorted((a, b) => rank(a.moduleId) - rank(b.moduleId))
  }
}

/** Each alternative of the last pair of braces by itself. */
const expanded = (pattern: string): ReadonlyArray<string> => {
  const [, before, alternatives, after] = /^(.*)\{([^}]*)\}([^{]*)$/.exec(pattern) ?? []
  return alternatives === undefined ? [pattern] : alternatives.split(",").map((name) => `${before}${name}${after}`)
}

/** Those that need neither a process nor a server, and change nothing outside of themselves: they share one import of Effect. */
const inMemory = [
  "test/{contract,placement}/*.test.ts",
  "test/*/{Memory,plan,transient,verify,limits,saslprep,Letter,Violations,headers,parked,Window,provision,Intake,NatsDelivery,ackSubject,StreamLife,deadLetter,ahead,sessions}.test.ts",
  "test/{config,observe,trace}/{Health,Metrics,Sampler,TracingSettings,Watchdog,traceContext}.test.ts",
  "test/load/{Reader,ledger,measures}.test.ts",
  "test/pipeline/{Worker,traces,Flow,Batcher,Waiting,batches,Shares}.test.ts",
  "test/{cli/logging,cli/heap,fuzz/check,mutants/mutants}.test.ts",
]

for (const pattern of inMemory.flatMap(expanded)) {
  if (globSync(pattern).length === 0) throw new Error(`vitest.config.ts: nothing matches ${pattern}`)
}

export default defineConfig({
  test: {
    globalSetup: "test/setup.ts",
    sequence: { sequencer: LongestFirst },
    testTimeout: 60_000,
    hookTimeout: 60_000,
    maxWorkers: 3,
    // Whole hours away from nowhere: what holds only in UTC fails.
    env: { TZ: "Pacific/Chatham" },
    // The simulation makes much that is short-lived: a third less time.
    execArgv: ["--max-semi-space-size=64"],
    projects: [
      { extends: true, test: { name: "servers", include: ["test/**/*.test.ts"], exclude: inMemory } },
      { extends: true, test: { name: "memory", include: inMemory, isolate: false } },
    ],
  },
})
