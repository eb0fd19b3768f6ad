/** Which traces are sampled: by the sender's flag, or by a share that every service finds in the trace's id. */
import { assert, describe, it } from "@effect/vitest"
import { make } from "../../src/trace/Sampler.ts"

const parent = (low: string, sampled = true) => ({ traceId: "f".repeat(16) + low, spanId: "1".repeat(16), sampled })

describe("Sampler", () => {
  it("a parent decides where it is heeded, whatever the share", () => {
    for (const share of [0, 0.5, 1]) {
      const { follows } = make({ share: share, heedsParent: true })
      assert.isTrue(follows(parent("f".repeat(16))))
      assert.isFalse(follows(parent("0".repeat(16), false)))
    }
  })

  it("otherwise the id decides: its last eight bytes are below the share of all numbers", () => {
    const { follows } = make({ share: 0.25, heedsParent: false })
    assert.isTrue(follows(parent("3fffffffffffffff", false)))
    assert.isFalse(follows(parent("4000000000000000")))
    assert.isTrue(follows(parent("0000000000000000")))
    assert.isFalse(follows(parent("ffffffffffffffff")))
    assert.isTrue(make({ share: 1, heedsParent: false }).follows(parent("ffffffffffffffff", false)))
    assert.isFalse(make({ share: 0, heedsParent: false }).follows(parent("0000000000000000")))
  })

  it("a new trace is in the share by its id, and the share is met", () => {
    const share = 0.1
    const sampler = make({ share: share, heedsParent: false })
    let sampled = 0
    const draws = 20_000
    for (let i = 0; i < draws; i++) {
      const traceId = sampler.begins()
      if (traceId === undefined) continue
      sampled++
      assert.match(traceId, /^[1-9a-f][\da-f]{31}$/)
      assert.isTrue(sampler.follows({ traceId, spanId: "1".repeat(16), sampled: false }))
    }
    // Ten standard deviations to each side.
    assert.closeTo(sampled / draws, share, 10 * Math.sqrt((share * (1 - share)) / draws))
    assert.isUndefined(make({ share: 0, heedsParent: true }).begins())
    assert.isDefined(make({ share: 1, heedsParent: true }).begins())
  })
})
