/** `npm run fuzz`: prints what was sent and how it ended. Options: `--messages N --seed N --workers N`. */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { Console, Effect, Layer } from "effect"
import { parseArgs } from "node:util"
import { TestNats, TestPostgres } from "../../bench/servers/privateServers.ts"
import { fuzz, type Report } from "./fuzz.ts"

const { values } = parseArgs({
  options: {
    messages: { type: "string", default: "100000" },
    seed: { type: "string", default: String(Date.now() % 1_000_000) },
    workers: { type: "string", default: "2" },
  },
})
const options = { messages: Number(values.messages), seed: Number(values.seed), workers: Number(values.workers) }

const table = (title: string, tally: Report["byPayload"]): string => {
  const total = (row: ReadonlyMap<string, number>) => [...row.values()].reduce((sum, n) => sum + n, 0)
  const rows = [...tally]
    .sort(([, a], [, b]) => total(b) - total(a))
    .map(([kind, row]) => {
      const outcomes = [...row].sort(([, a], [, b]) => b - a).map(([outcome, n]) => `${n} ${outcome}`)
      return `| ${kind} | ${total(row)} | ${outcomes.join("; ")} |`
    })
  return [`| ${title} | messages | how they ended |`, "|---|---|---|", ...rows, ""].join("\n")
}

const shownProblems = 20

const program = Effect.gen(function* () {
  const report = yield* fuzz(options)
  yield* Console.log(table("payload", report.byPayload))
  yield* Console.log(table("headers", report.byHeaders))
  yield* Console.log(
    `${options.messages} messages, seed ${options.seed}, ${options.workers} workers: ${report.seconds.toFixed(0)} s, ` +
      `${report.workerMemory} MiB at most in a worker, ${report.problems.length} problems`,
  )
  for (const problem of report.problems.slice(0, shownProblems)) yield* Console.log(`- ${problem}`)
  if (report.problems.length === 0) return
  yield* Console.log(`again: npm run fuzz -- --messages ${options.messages} --seed ${options.seed}`)
  return yield* Effect.die(new Error("the fuzzer found problems"))
}).pipe(Effect.provide(Layer.mergeAll(TestNats.layer, TestPostgres.layer(2))))

NodeRuntime.runMain(program)
