/** One bounded queue of a lane. */
import { assert, describe, it } from "@effect/vitest"
import { Latch } from "effect"
import type { Delivery } from "../../src/broker/Broker.ts"
import { ObjectId } from "../../src/contract/ObjectId.ts"
import { Waiting, Work } from "../../src/pipeline/Waiting.ts"

const workOf = (seq: number, characters = 1) =>
  new Work(
    "intake",
    { heldBytes: 0 } as Delivery,
    {
      id: ObjectId.make(1n),
      timestamp: BigInt(seq),
      seq,
      log: "x".repeat(characters),
      messageId: undefined,
      redelivered: false,
    },
    { requestId: undefined, replyTo: undefined },
  )

const works = (count: number, characters?: number) => Array.from({ length: count }, (_, i) => workOf(i + 1, characters))
const seqs = (taken: ReadonlyArray<Work>) => taken.map(({ entry }) => entry.seq)
const endless = { tryAdd: () => true }

describe("Waiting", () => {
  it("takes in as many as it may, and says where it goes on", () => {
    const waiting = new Waiting(3, endless)
    const offered = { works: works(5), next: 0 }
    assert.isFalse(waiting.enqueue(offered))
    assert.strictEqual(offered.next, 3)
    assert.isFalse(Latch.isOpen(waiting.space))
    assert.deepStrictEqual(seqs(waiting.take(2, Infinity)), [1, 2])
    assert.isTrue(Latch.isOpen(waiting.space))
    assert.isTrue(waiting.enqueue(offered))
    assert.deepStrictEqual(seqs(waiting.takeAll()), [3, 4, 5])
    assert.isTrue(waiting.isEmpty)
  })

  it("takes in nothing that its lane has no bytes for", () => {
    let left = 2
    const waiting = new Waiting(10, { tryAdd: () => left-- > 0 })
    const offered = { works: works(4), next: 0 }
    assert.isFalse(waiting.enqueue(offered))
    assert.strictEqual(offered.next, 2)
    assert.isFalse(Latch.isOpen(waiting.space))
  })

  it("gives what one transaction may have, in entries and in characters, one entry at least", () => {
    const waiting = new Waiting(10, endless)
    waiting.enqueue({ works: works(6, 100), next: 0 })
    assert.deepStrictEqual(seqs(waiting.take(10, 150)), [1, 2])
    assert.deepStrictEqual(seqs(waiting.take(1, 1_000)), [3])
    assert.deepStrictEqual(seqs(waiting.take(10, 1)), [4])
    assert.deepStrictEqual(seqs(waiting.take(10, 1_000)), [5, 6])
  })
})
