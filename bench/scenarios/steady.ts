/** The delay from append to event under a steady load. */
import { Effect } from "effect"
import { events, openLoop, publishAll } from "../Client.ts"
import { add } from "../Report.ts"
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

/** At 1,000/s, and at shares of the drain rate. */
export const runSteady = Effect.fnUntraced(function* (drainRate: number, seconds: number) {
  const points: Array<LoadPoint> = []
  const shares = [0.25, 0.5, 0.75, 0.9].map(
    (share) => [`${share * 100} % of the drain rate`, drainRate * share] as const,
  )
  for (const [name, rate] of [["100/s", 100], ["1,000/s", 1_000], ...shares] as const) {
    const point = yield* at("objectlog", Math.round(rate), seconds)
    points.push(point)
    if (rate === 1_000) {
      const floor = yield* at("A", rate, seconds)
      for (const [quantile, label] of [
        ["p50", "median"],
        ["p99", "p99"],
      ] as const) {
        yield* add({ scenario, what: `floor A, ${name}, ${label}`, value: floor[quantile], unit: "ms" })
      }
    }
    const bars = rate === 1_000 ? ([3, 12] as const) : rate === 100 ? ([10, undefined] as const) : []
    for (const [quantile, label, bar] of [
      ["p50", "median", bars[0]],
      ["p99", "p99", bars[1]],
      ["p999", "p99.9", undefined],
    ] as const) {
      yield* add({
        scenario,
        what: `${name}${rate > 1_000 ? ` (${point.offered.toLocaleString("en-US")}/s)` : ""}, ${label}`,
        value: point[quantile],
        unit: "ms",
        ...(bar === undefined ? {} : { bar: { text: `≤ ${bar} ms`, reached: point[quantile] <= bar } }),
      })
    }
  }
  return points
})
