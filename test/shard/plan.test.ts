import { assert, describe, it } from "@effect/vitest"
import { Schema } from "effect"
import { compareStamps, type NewEntry, type Place } from "../../src/contract/LogEntry.ts"
import { type Head, identityKey, messageKey, planAppend } from "../../src/shard/plan.ts"
import { entry, id } from "./shardPoolContract.ts"

/** Small ranges, so that repetitions of every kind are frequent. */
const Item = Schema.Struct({
  object: Schema.Literals([1, 2, 3]),
  stamp: Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 40 })),
  message: Schema.Literals(["", "", "a", "b", "c"]),
})
const Batches = Schema.Array(Schema.Array(Item))

const toEntry = (item: typeof Item.Type): NewEntry =>
  entry(id(item.object), item.stamp, {
    timestamp: BigInt(Math.ceil(item.stamp / 2)),
    ...(item.message === "" ? {} : { messageId: item.message }),
  })

/** Applies batches one after another, as a database would. */
const apply = (batches: ReadonlyArray<ReadonlyArray<NewEntry>>) => {
  const heads = new Map<NewEntry["id"], Head>([1, 2, 3].map((n) => [id(n), { entries: 0, lastTimestamp: -1n }]))
  const byIdentity = new Map<string, Place>()
  const byMessageId = new Map<string, Place>()
  const stored: Array<{ readonly entry: NewEntry; readonly position: number }> = []
  const plans = batches.map((batch) => {
    const plan = planAppend(batch, heads, byIdentity, byMessageId)
    for (const insert of plan.inserts) {
      const { entry: added, position } = insert
      const existing = { position, timestamp: added.timestamp, seq: added.seq }
      byIdentity.set(identityKey(added.id, added), existing)
      if (added.messageId !== undefined) byMessageId.set(messageKey(added.id, added.messageId), existing)
      stored.push(insert)
    }
    for (const [objectId, head] of plan.heads) heads.set(objectId, head)
    return plan
  })
  return { heads, plans, stored }
}

describe("planAppend", () => {
  it.prop("positions are gapless, and identities and message ids unique", [Batches], ([items]) => {
    const { heads, stored } = apply(items.map((batch) => batch.map(toEntry)))
    for (const [objectId, head] of heads) {
      const own = stored.filter((at) => at.entry.id === objectId)
      assert.deepStrictEqual(
        own.map((at) => at.position),
        own.map((_, index) => index + 1),
      )
      assert.strictEqual(head.entries, own.length)
      assert.strictEqual(new Set(own.map((at) => identityKey(objectId, at.entry))).size, own.length)
      const named = own.flatMap((at) => at.entry.messageId ?? [])
      assert.strictEqual(new Set(named).size, named.length)
    }
  })

  it("an entry that is found by its message id alone is itself, and not its own duplicate", () => {
    const [known, other] = [entry(id(1), 7, { messageId: "m" }), entry(id(1), 8, { messageId: "m" })]
    const existing = { position: 3, timestamp: known.timestamp, seq: known.seq }
    const heads = new Map([[id(1), { entries: 5, lastTimestamp: other.timestamp }]])
    const plan = planAppend([known, other], heads, new Map(), new Map([[messageKey(id(1), "m"), existing]]))
    assert.deepStrictEqual(plan.placed, [
      { _tag: "Stored", ...existing },
      { _tag: "Duplicate", ...existing },
    ])
    assert.lengthOf(plan.inserts, 0)
  })

  it.prop("every batch is answered in its order, and its inserts are in stamp order", [Batches], ([items]) => {
    const batches = items.map((batch) => batch.map(toEntry))
    apply(batches).plans.forEach(({ inserts, placed }, index) => {
      assert.strictEqual(placed.length, batches[index]!.length)
      placed.forEach((at, place) => {
        if (at._tag === "Stored") assert.strictEqual(compareStamps(at, batches[index]![place]!), 0)
      })
      for (let i = 1; i < inserts.length; i++) {
        assert.isBelow(compareStamps(inserts[i - 1]!.entry, inserts[i]!.entry), 1)
      }
    })
  })

  it("finds a repeated delivery behind another object's of the same stamp", () => {
    const [a, b] = [entry(id(1), 1), entry(id(2), 1)]
    const plan = apply([[a, b, a]]).plans[0]!
    assert.strictEqual(plan.inserts.length, 2)
    assert.strictEqual(plan.placed[2], plan.placed[0])
  })

  it.prop("a repeated batch inserts nothing", [Batches], ([items]) => {
    const batches = items.map((batch) => batch.map(toEntry))
    const { plans } = apply([...batches, ...batches])
    for (const plan of plans.slice(batches.length)) assert.deepStrictEqual(plan.inserts, [])
  })
})
