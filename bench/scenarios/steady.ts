/** The delay from append to event under a steady load. */
import { Effect } from "effect"
import { events, openLoop, publishAll } from "../Client.ts"
import { add, medianRun } from "../Report.ts"
import { onFreshServers, Rig, startSystem, stored, storedByFloor } from "../Rig.ts"
import { warmUpAppends } from "./drain.ts"

/** One point of the curve: what was offered, what came through, and how long it took. */
export interface LoadPoint {
  readonly offered: number
  readonly rate: number
  readonly p50: number
  readonly p99: number
  readonly p999: number
}

export interface Curves {
  readonly objectlog: ReadonlyArray<LoadPoint>
  readonly floorA: ReadonlyArray<LoadPoint>
}

const scenario = "Append to event under steady load"
const text = "x".repeat(100)

const warmUpSeconds = 2

const at = (system: "A" | "objectlog", rate: number, seconds: number) =>
  onFreshServers(
    Effect.gen(function* () {
      const { connection } = yield* Rig
      yield* startSystem(system, 1, 1_000)
      const body = (i: number) => `{"id":${(i * 7919) % 1_000},"log":"${text}","request_id":"${i}"}`
      // What is measured is the service that has been at work for a while, not V8's compiler.
      const warm = yield* events(connection, warmUpAppends)
      yield* publishAll(connection, warmUpAppends, body)
      yield* warm
      yield* openLoop(connection, { rate, seconds: warmUpSeconds, body })
      const measured = yield* openLoop(connection, { rate, seconds, body })
      const found = system === "A" ? { entries: yield* storedByFloor(system), wrong: 0 } : yield* stored
      const expected = warmUpAppends + Math.round(rate * warmUpSeconds) + Math.round(rate * seconds)
      if (found.entries !== expected || found.wrong > 0) {
        return yield* Effect.die(
          new Error(`expected ${expected} entries, got ${found.entries}, and ${found.wrong} objects with gaps`),
        )
      }
      return { offered: rate, ...measured } satisfies LoadPoint
    }),
  )

/** At 100/s, at 1,000/s several times, and at shares of the drain rate: in turn with floor A. */
export const runSteady = Effect.fnUntraced(function* (drainRate: number, seconds: number, rounds: number) {
  const [service, floor]: [Array<LoadPoint>, Array<LoadPoint>] = [[], []]
  const report = Effect.fnUntraced(function* (
    name: string,
    runs: ReadonlyArray<LoadPoint>,
    bars: ReadonlyArray<number>,
  ) {
    // One stall of the machine of a tenth of a second is the p99 of ten seconds.
    const point = medianRun(runs, ({ p99 }) => p99)
    const all = (quantile: "p50" | "p99" | "p999") =>
      runs.length < 2 ? "" : ` (${runs.map((run) => run[quantile].toFixed(1)).join(", ")})`
    for (const [quantile, label, bar] of [
      ["p50", "median", bars[0]],
      ["p99", "p99", bars[1]],
      ["p999", "p99.9", undefined],
    ] as const) {
      yield* add({
        scenario,
        what: `${name}, ${label}${all(quantile)}`,
        value: point[quantile],
        unit: "ms",
        ...(bar === undefined ? {} : { bar: { text: `≤ ${bar} ms`, reached: point[quantile] <= bar } }),
      })
    }
    return point
  })

  const both = Effect.fnUntraced(function* (
    name: string,
    rate: number,
    times: number,
    bars: ReadonlyArray<number> = [],
  ) {
    const runs: Record<"A" | "objectlog", Array<LoadPoint>> = { A: [], objectlog: [] }
    for (let round = 0; round < times; round++) {
      for (const system of ["A", "objectlog"] as const) runs[system].push(yield* at(system, rate, seconds))
    }
    floor.push(yield* report(`floor A, ${name}`, runs.A, []))
    service.push(yield* report(name, runs.objectlog, bars))
  })

  yield* both("100/s", 100, 1, [10])
  yield* both("1,000/s", 1_000, rounds, [3, 12])
  for (const share of [0.25, 0.5, 0.75, 0.9]) {
    const rate = Math.round(drainRate * share)
    yield* both(`${share * 100} % of the drain rate (${rate.toLocaleString("en-US")}/s)`, rate, 1)
  }
  return { objectlog: service, floorA: floor } satisfies Curves
})
