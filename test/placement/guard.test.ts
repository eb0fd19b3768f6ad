/** Every verdict of the guard, with the exact sentences that an operator reads. */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Schema } from "effect"
import {
  compare,
  type Found,
  type GuardVerdict,
  placementOf,
  PlacementMismatch,
  type PlacementRecord,
  ShardRecord,
} from "../../src/placement/guard.ts"

const placement = (...names: ReadonlyArray<string>): PlacementRecord =>
  placementOf(names.map((name) => ({ name, weight: 1 })))

const ab = placement("a", "b")

/** The database of `shard`, at the address `<shard>.db`. */
const at = (shard: string, record: Found["record"], isEmpty = false): Found => ({
  shard,
  address: `${shard}.db`,
  record,
  isEmpty,
})
const record =
  (state: ShardRecord["state"]) =>
  (name: string, in_: PlacementRecord): ShardRecord => ({
    name,
    state,
    placement: in_,
  })
const ready = record("ready")
const pending = record("pending")

const refusal = (configured: PlacementRecord, ...found: ReadonlyArray<Found>): ReadonlyArray<string> => {
  const verdict = compare(configured, found)
  return "reasons" in verdict ? verdict.reasons : [`not refused: ${JSON.stringify(verdict)}`]
}

describe("Match", () => {
  it("all agree", () => {
    assert.deepStrictEqual(compare(ab, [at("a", ready("a", ab)), at("b", ready("b", ab))]), {
      _tag: "Match",
      toRecord: [],
      unreachable: [],
    })
  })
  it("a shard is down", () => {
    assert.deepStrictEqual(compare(ab, [at("a", "unreachable"), at("b", ready("b", ab))]), {
      _tag: "Match",
      toRecord: [],
      unreachable: ["a"],
    })
  })
  it("a shard that was not looked for counts as down", () => {
    assert.deepStrictEqual(compare(ab, [at("b", ready("b", ab))]), {
      _tag: "Match",
      toRecord: [],
      unreachable: ["a"],
    })
  })
  it("a first start ended between the marks", () => {
    assert.deepStrictEqual(compare(ab, [at("a", ready("a", ab)), at("b", pending("b", ab))]), {
      _tag: "Match",
      toRecord: ["b"],
      unreachable: [],
    })
  })
})

describe("Initialise", () => {
  it("all empty", () => {
    assert.deepStrictEqual(compare(ab, [at("a", undefined), at("b", undefined)]), {
      _tag: "Initialise",
      shards: ["a", "b"],
      empty: ["a", "b"],
    })
  })
  it("a first start ended between the records", () => {
    assert.deepStrictEqual(compare(ab, [at("a", pending("a", ab)), at("b", undefined)]), {
      _tag: "Initialise",
      shards: ["a", "b"],
      empty: ["b"],
    })
  })
  it("a first start of another version, hash or number of slots that was never completed gives way", () => {
    for (const other of [
      { ...ab, version: 2 },
      { ...ab, hash: "xxh3" },
      { ...ab, slots: 8192 },
    ]) {
      assert.strictEqual(compare(ab, [at("a", pending("a", other), true), at("b", undefined, true)])._tag, "Initialise")
    }
  })
  it("all pending", () => {
    assert.deepStrictEqual(compare(ab, [at("a", pending("a", ab)), at("b", pending("b", ab))]), {
      _tag: "Initialise",
      shards: ["a", "b"],
      empty: [],
    })
  })
})

describe("Wait", () => {
  it.each([undefined, pending("a", ab)])("one is down and none is ready: %j", (found) => {
    assert.deepStrictEqual(compare(ab, [at("a", found), at("b", "unreachable")]), { _tag: "Wait", unreachable: ["b"] })
  })
})

describe("Refuse", () => {
  const abc = placement("a", "b", "c")

  it("a shard is missing", () => {
    assert.deepStrictEqual(refusal(placement("a"), at("a", ready("a", ab))), [
      "shard b is recorded in database a but missing from POSTGRES_IPS: add it back, its logs are nowhere else",
    ])
  })
  it.each([undefined, "unreachable", pending("c", abc)] as const)("a shard was added, its database %j", (found) => {
    assert.deepStrictEqual(refusal(abc, at("a", ready("a", ab)), at("b", ready("b", ab)), at("c", found)), [
      "shard c is in POSTGRES_IPS but not in the recorded placement (a, b): " +
        "moving logs to a new shard is not supported yet, remove c",
    ])
  })
  it("a shard was replaced by an empty one", () => {
    assert.deepStrictEqual(refusal(placement("a", "c"), at("a", ready("a", ab)), at("c", undefined)), [
      "shard b is recorded in database a but missing from POSTGRES_IPS: add it back, its logs are nowhere else",
      "shard c is in POSTGRES_IPS but not in the recorded placement (a, b): " +
        "moving logs to a new shard is not supported yet, remove c",
    ])
  })
  it("a shard was renamed", () => {
    assert.deepStrictEqual(refusal(placement("a", "c"), at("a", ready("a", ab)), at("c", ready("b", ab))), [
      "the database at c.db is shard b, but POSTGRES_IPS calls it c: call it b again, as in b=postgres://…",
    ])
  })
  it("two addresses are swapped", () => {
    assert.deepStrictEqual(refusal(ab, at("a", ready("b", ab)), at("b", ready("a", ab))), [
      "the database at a.db is shard b, POSTGRES_IPS expects shard a there; " +
        "the database at b.db is shard a, POSTGRES_IPS expects shard b there: their addresses are swapped",
    ])
  })
  it("an address is wrong and the other database is down", () => {
    assert.deepStrictEqual(refusal(ab, at("a", ready("b", ab)), at("b", "unreachable")), [
      "the database at a.db is shard b, POSTGRES_IPS expects shard a there: correct the address of shard a",
    ])
  })
  it("two addresses lead to one database, also on a first start", () => {
    assert.deepStrictEqual(refusal(ab, at("a", pending("a", ab)), at("b", pending("a", ab))), [
      "the databases at b.db and a.db are both shard a: " +
        "they are one database or copies of it, correct the address of shard b",
    ])
  })
  it("a database belongs to something else", () => {
    const other = placement("x", "y", "z")
    assert.deepStrictEqual(refusal(ab, at("a", ready("a", ab)), at("b", ready("z", other))), [
      "the database at b.db is shard z of the placement (x, y, z), POSTGRES_IPS expects shard b there: wrong database?",
    ])
  })
  it("the order changed", () => {
    assert.deepStrictEqual(refusal(placement("b", "a"), at("b", ready("b", ab)), at("a", ready("a", ab))), [
      "POSTGRES_IPS has the shards in the order (b, a), but database b records (a, b): " +
        "restore the order, it decides where logs are",
    ])
  })
  it("a weight changed", () => {
    const heavier = placementOf([
      { name: "a", weight: 1 },
      { name: "b", weight: 2.5 },
    ])
    assert.deepStrictEqual(refusal(heavier, at("a", ready("a", ab)), at("b", ready("b", ab))), [
      "shard b has weight 2.5 in POSTGRES_IPS, but database a records weight 1: " +
        "moving logs to fit a new weight is not supported yet, set it back to 1",
    ])
  })
  it("another version, hash or number of slots", () => {
    const other = { ...ab, version: 2, hash: "xxh3", slots: 8192 }
    assert.deepStrictEqual(
      refusal(ab, at("a", ready("a", other)), at("b", ready("b", ab))),
      ["version 2, but this objectlog has version 1", "hash xxh3, but this objectlog has hash murmur3_x86_32"]
        .concat("slots 8192, but this objectlog has slots 4096")
        .map((field) => `database a records a placement with ${field}: start the objectlog that wrote it`),
    )
  })
  it("a record cannot be read", () => {
    assert.deepStrictEqual(refusal(ab, at("a", "unreadable"), at("b", undefined)), [
      "the placement recorded in the database of shard a at a.db cannot be read: start the objectlog that wrote it",
    ])
  })
  it("a database is empty beside one that is ready", () => {
    assert.deepStrictEqual(refusal(ab, at("a", ready("a", ab)), at("b", undefined)), [
      "the database of shard b at b.db is empty, but database a records it as part of the placement: " +
        "wrong or lost database? Correct its address, or restore it from a backup",
    ])
  })
  it("two first starts with different placements", () => {
    assert.deepStrictEqual(refusal(ab, at("a", pending("a", ab)), at("b", pending("b", abc))), [
      "shard c is recorded in database b but missing from POSTGRES_IPS: add it back, its logs are nowhere else",
    ])
  })
  it("a mismatch is refused at once, though another shard is down", () => {
    assert.lengthOf(refusal(abc, at("a", pending("a", ab)), at("b", "unreachable"), at("c", "unreachable")), 1)
  })
})

describe("a record of a start that never completed", () => {
  const cd = placement("c", "d")

  it("counts as none where the list is corrected", () => {
    const corrected: GuardVerdict = { _tag: "Initialise", shards: ["c", "d"], empty: ["c", "d"] }
    assert.deepStrictEqual(compare(cd, [at("c", pending("a", ab), true), at("d", undefined)]), corrected)
    assert.deepStrictEqual(compare(cd, [at("c", pending("a", ab), true), at("d", pending("b", ab), true)]), corrected)
  })
  it("counts as none where only the placement differs", () => {
    const heavier = placementOf([
      { name: "a", weight: 1 },
      { name: "b", weight: 2 },
    ])
    assert.deepStrictEqual(compare(heavier, [at("a", pending("a", ab), true), at("b", pending("b", heavier), true)]), {
      _tag: "Initialise",
      shards: ["a", "b"],
      empty: ["a"],
    })
  })
  it("is not touched while a shard is down", () => {
    assert.deepStrictEqual(compare(cd, [at("c", pending("a", ab), true), at("d", "unreachable")]), {
      _tag: "Wait",
      unreachable: ["d"],
    })
  })
  it("is refused where something is stored", () => {
    assert.include(
      refusal(cd, at("c", pending("a", ab)), at("d", undefined)),
      "the database at c.db is shard a, but POSTGRES_IPS calls it c: call it a again, as in a=postgres://…",
    )
  })
  it("is refused beside one that is ready, be it of another placement or of ours", () => {
    assert.include(
      refusal(cd, at("c", pending("a", ab), true), at("d", ready("b", ab))).join("\n"),
      "the database at d.db is shard b, but POSTGRES_IPS calls it d",
    )
    assert.deepStrictEqual(refusal(cd, at("c", ready("c", cd)), at("d", pending("b", ab), true)), [
      "the database of shard d at d.db is empty, but database c records it as part of the placement: " +
        "wrong or lost database? Correct its address, or restore it from a backup",
    ])
  })
  it("is refused where two addresses lead to it", () => {
    assert.include(
      refusal(cd, at("c", pending("a", ab), true), at("d", pending("a", ab), true)),
      "the databases at c.db and d.db are both shard a: " +
        "they are one database or copies of it, correct the address of shard c",
    )
  })

  /** Everything that a database can be found to hold. */
  const holds = (shard: string): ReadonlyArray<Found> => [
    at(shard, undefined),
    at(shard, "unreachable"),
    at(shard, "unreadable"),
    ...[ab, placement("a", "b", "c"), placement("x", "y")].flatMap((in_) =>
      [shard, "x"].flatMap((name) => [
        at(shard, ready(name, in_)),
        at(shard, pending(name, in_)),
        at(shard, pending(name, in_), true),
      ]),
    ),
  ]
  it("whatever is found: what is written to was empty, and no placement is begun beside another one", () => {
    for (const a of holds("a")) {
      for (const b of holds("b")) {
        const verdict = compare(ab, [a, b])
        const isReady = ({ record }: Found) => typeof record === "object" && record.state === "ready"
        const isOurs = ({ record, shard }: Found) =>
          typeof record === "object" && record.name === shard && record.placement === ab
        const shown = JSON.stringify({ a, b, verdict })
        if (verdict._tag === "Initialise") {
          assert.isFalse(isReady(a) || isReady(b), shown)
          for (const at of [a, b]) {
            const isWritten = verdict.empty.includes(at.shard)
            assert.isTrue(isWritten ? at.record === undefined || (at.isEmpty && !isOurs(at)) : isOurs(at), shown)
          }
        }
        if (verdict._tag === "Match") {
          assert.isTrue(isReady(a) || isReady(b), shown)
          for (const at of [a, b]) assert.isTrue(isOurs(at) || at.record === "unreachable", shown)
        }
      }
    }
  })
})

describe("records", () => {
  it.effect("come back from jsonb, also those of another version", () =>
    Effect.gen(function* () {
      for (const written of [ready("a", ab), pending("b", { ...ab, version: 2 })]) {
        const json: unknown = JSON.parse(JSON.stringify(written))
        assert.deepStrictEqual(yield* Schema.decodeUnknownEffect(ShardRecord)(json), written)
      }
    }),
  )
  it("of this version are pinned", () => {
    assert.strictEqual(
      JSON.stringify(placementOf([{ name: "a", weight: 1 }])),
      `{"version":1,"hash":"murmur3_x86_32","slots":4096,"shards":[{"name":"a","weight":1}]}`,
    )
  })
  it("PlacementMismatch has a line for each reason", () => {
    const error = new PlacementMismatch({ reasons: ["one", "two"] })
    assert.strictEqual(error.message, "placement: one\nplacement: two")
  })
})
