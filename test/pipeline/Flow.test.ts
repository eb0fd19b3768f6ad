/** When a lane without room keeps others from their work. */
import { assert, describe, it } from "@effect/vitest"
import { Latch } from "effect"
import { Flow } from "../../src/pipeline/Flow.ts"
import * as limits from "../../src/pipeline/limits.ts"

/** Two lanes, whose last transactions took so long and ended just now; the second has nothing to do. */
const flowOf = (millis: number, others: number) => {
  const flow = new Flow(["a", "b"])
  flow.idle("a", false)
  flow.took("a", millis, 0)
  flow.took("b", others, 0)
  return flow
}

describe("Flow", () => {
  it("a slow lane is in the way of one that is idle, in use and much faster", () => {
    const slow = limits.slowMillis
    assert.isTrue(flowOf(slow, slow / limits.slowerTimes).isInTheWay("a", 1))
    assert.isFalse(flowOf(slow - 1, 1).isInTheWay("a", 1), "it is not slow")
    assert.isFalse(flowOf(slow, slow / limits.slowerTimes + 1).isInTheWay("a", 1), "the other is not much faster")
    const busy = flowOf(slow, 1)
    busy.idle("b", false)
    assert.isFalse(busy.isInTheWay("a", 1), "the other has work of its own")
    assert.isFalse(flowOf(slow, 1).isInTheWay("a", limits.idleMillis), "nobody uses the other")
  })

  it("a transaction under way counts as soon as it is longer than those before it", () => {
    const flow = flowOf(1, 1)
    flow.began("a", 10)
    assert.isFalse(flow.isInTheWay("a", 10 + limits.slowMillis - 1))
    assert.isTrue(flow.isInTheWay("a", 10 + limits.slowMillis))
  })

  it("something flows while one lane at least takes appends", () => {
    const flow = new Flow(["a", "b"])
    flow.stall("a")
    assert.isTrue(flow.isSome() && Latch.isOpen(flow.some))
    flow.stall("b")
    assert.isFalse(flow.isSome() || Latch.isOpen(flow.some))
    flow.flow("a")
    assert.isTrue(flow.isSome() && Latch.isOpen(flow.some))
    assert.deepStrictEqual([flow.isStalled("a"), flow.isStalled("b")], [false, true])
  })
})
