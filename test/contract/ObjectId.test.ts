/**
 * An object's id is exact over all 64 bits: as decimal text, as `bigint`, and in the signed column that stores it. Text
 * has one form per id, so that two spellings can't name two objects.
 */
import { assert, describe, it } from "@effect/vitest"
import { Effect, Schema } from "effect"
import * as ObjectId from "../../src/contract/ObjectId.ts"
import * as draw from "./arbitraries.ts"

const runs = { arbitrary: { runs: 1_000 } }
const edges = [0n, 1n, 2n ** 53n, 2n ** 53n + 1n, 2n ** 63n - 1n, 2n ** 63n, 2n ** 64n - 1n] as Array<ObjectId.ObjectId>

describe("ObjectId", () => {
  it.effect("reads canonical digits in range and nothing else", () =>
    Effect.sync(() => {
      for (const id of edges) assert.strictEqual(ObjectId.fromDecimal(`${id}`), id)
      const refused = [
        "",
        " 1",
        "1 ",
        "1\n",
        "007",
        "00",
        "-0",
        "-1",
        "+1",
        "1.0",
        "1e3",
        "0x1",
        "1_000",
        "1n",
        "٣",
        "x",
      ]
      for (const text of [...refused, `${2n ** 64n}`, "99999999999999999999", "100000000000000000000"]) {
        assert.isUndefined(ObjectId.fromDecimal(text), JSON.stringify(text))
      }
    }),
  )

  it.effect("has a schema with the same range", () =>
    Effect.sync(() => {
      const is = Schema.is(ObjectId.ObjectId)
      for (const id of edges) assert.isTrue(is(id))
      for (const value of [-1n, 2n ** 64n, 1, "1", null]) assert.isFalse(is(value))
    }),
  )

  it.effect("puts the halves of the range where two's complement has them", () =>
    Effect.sync(() => {
      const columns = [0n, 1n, 2n ** 53n, 2n ** 53n + 1n, 2n ** 63n - 1n, -(2n ** 63n), -1n]
      assert.deepStrictEqual(edges.map(ObjectId.toColumn), columns)
      assert.deepStrictEqual(columns.map(ObjectId.fromColumn), edges)
    }),
  )

  it.effect.prop(
    "goes through text and column unchanged, and its column fits",
    [draw.id],
    ([id]) =>
      Effect.sync(() => {
        assert.strictEqual(ObjectId.fromDecimal(id.toString()), id)
        const column = ObjectId.toColumn(id)
        assert.strictEqual(ObjectId.fromColumn(column), id)
        assert.isTrue(column >= -(2n ** 63n) && column < 2n ** 63n)
      }),
    runs,
  )

  it.effect.prop(
    "keeps the order of ids within each half of the range; the upper half comes first",
    [draw.id, draw.id],
    ([a, b]) =>
      Effect.sync(() => {
        const upper = (id: bigint) => id >= 2n ** 63n
        const expected = upper(a) === upper(b) ? a < b : upper(a)
        assert.strictEqual(ObjectId.toColumn(a) < ObjectId.toColumn(b), expected)
      }),
    runs,
  )
})
