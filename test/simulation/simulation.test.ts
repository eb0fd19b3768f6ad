/**
 * Goal: nothing lost, doubled or reordered, whatever fails and whenever. Method: some hundred seeds, each a run of the real
 * pipelines on simulated servers with faults that the seed draws; `simulate.ts` says how. `npm run simulate` runs more.
 */
import { afterAll, assert, beforeAll, describe, it } from "@effect/vitest"
import { Coverage, faultClasses } from "./faults.ts"
import { mutations } from "./mutations.ts"
import { caughtBy, coverageTable } from "./report.ts"
import { simulate } from "./simulate.ts"

const seeds = 200

/** Runs that may pass before a mistake is caught; most are by one of the first. */
const runsPerMutation = 60

describe("simulation", () => {
  const stackTraceLimit = Error.stackTraceLimit
  // Runs make many errors on purpose, and nobody reads where.
  beforeAll(() => void (Error.stackTraceLimit = 0))
  afterAll(() => void (Error.stackTraceLimit = stackTraceLimit))

  it("keeps every guarantee, with each class of faults striking", () => {
    const coverage = new Coverage()
    const failures: Array<string> = []
    for (let seed = 1; seed <= seeds; seed++) {
      const run = simulate(seed)
      coverage.add(run.coverage)
      if (run.violations.length > 0) {
        failures.push(`${run.violations[0]}; again: npm run simulate -- --seed ${seed}`)
      }
    }
    console.log(coverageTable(coverage))
    assert.deepStrictEqual(failures, [])
    assert.deepStrictEqual(
      faultClasses.filter((name) => coverage.of(name) === 0),
      [],
    )
  }, 180_000)

  it("is the same run for the same seed, byte for byte", () => {
    for (const seed of [3, 7, 12, 101, 142]) {
      const first = simulate(seed, { traced: true })
      const second = simulate(seed, { traced: true })
      assert.isAbove(first.trace.length, 1_000)
      assert.strictEqual(second.trace, first.trace)
    }
    assert.notStrictEqual(simulate(3, { traced: true }).trace, simulate(7, { traced: true }).trace)
  })

  for (const mutation of mutations) {
    it(`catches: ${mutation.name}`, () => {
      const caught = caughtBy(mutation, runsPerMutation)
      assert.isDefined(caught, `none of ${runsPerMutation} runs catches it`)
    })
  }
})
