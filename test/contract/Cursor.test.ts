/**
 * A cursor comes back as it was sent, for its own object only. Whatever else a client sends is refused, and never throws.
 */
import { assert, describe, it } from "@effect/vitest"
import { Arbitrary, Effect } from "effect"
import { cursorText, parseCursor, type Cursor } from "../../src/contract/Cursor.ts"
import { timestampMax } from "../../src/contract/LogEntry.ts"
import { max, type ObjectId } from "../../src/contract/ObjectId.ts"
import * as draw from "./arbitraries.ts"

const runs = { arbitrary: { runs: 1_000 } }

const cursor: Arbitrary.Arbitrary<Cursor> = Arbitrary.map(
  Arbitrary.all([draw.pick(["asc", "desc", "position"] as const), draw.id, draw.int(0, Number.MAX_SAFE_INTEGER)]),
  ([order, time, count]) =>
    order === "position" ? { order, position: count } : { order, timestamp: BigInt.asUintN(63, time), seq: count },
)

const one = 1n as ObjectId

describe("cursor", () => {
  it.effect.prop(
    "comes back as it was, for its own object only",
    [draw.id, cursor, draw.id],
    ([id, sent, other]) =>
      Effect.sync(() => {
        const text = cursorText(id, sent)
        assert.deepStrictEqual(parseCursor(text, id), sent)
        if (other !== id) assert.isUndefined(parseCursor(text, other))
        // It stands in JSON unescaped.
        assert.match(text, /^[a-z0-9.]{1,42}$/)
      }),
    runs,
  )

  it.effect("holds the largest values, and none beyond", () =>
    Effect.sync(() => {
      const largest: Cursor = { order: "desc", timestamp: timestampMax, seq: Number.MAX_SAFE_INTEGER }
      const id = max as ObjectId
      assert.strictEqual(cursorText(id, largest), "d.3w5e11264sgsf.1y2p0ij32e8e7.2gosa7pa2gv")
      assert.deepStrictEqual(parseCursor("d.3w5e11264sgsf.1y2p0ij32e8e7.2gosa7pa2gv", id), largest)
      for (const beyond of [
        "d.3w5e11264sgsf.1y2p0ij32e8e8.1",
        "d.3w5e11264sgsf.1.2gosa7pa2gw",
        "p.3w5e11264sgsf.2gosa7pa2gw",
        "p.3w5e11264sgsf.zzzzzzzzzzzzz",
      ]) {
        assert.isUndefined(parseCursor(beyond, id), beyond)
      }
    }),
  )

  it.effect("refuses garbage", () =>
    Effect.sync(() => {
      const garbage = ["", ".", "a", "a.1", "a.1.1", "p.1.1.1", "p.1", "x.1.1.1", "a.1.1.1.1", "A.1.1.1", "a.1.1.1\n"]
      for (const text of [
        ...garbage,
        " a.1.1.1",
        "a.1.-1.1",
        "a.01.1.1",
        "a.1.1.",
        "a..1.1",
        "p.1.",
        "p.1.1e-5",
        "p.1.é",
      ]) {
        assert.isUndefined(parseCursor(text, one), JSON.stringify(text))
      }
    }),
  )

  it.effect.prop(
    "never throws on any text, nor on a cursor with a character changed",
    [draw.text, cursor, draw.int(0, 40), draw.pick(Array.from("adpzA019.-\u0000é"))],
    ([text, sent, at, char]) =>
      Effect.sync(() => {
        parseCursor(text, one)
        const valid = cursorText(one, sent)
        const changed = valid.slice(0, at) + char + valid.slice(at + 1)
        const got = parseCursor(changed, one)
        // What is still a cursor says the same when it is written again, leading zeros apart.
        if (got !== undefined) {
          assert.strictEqual(cursorText(one, got), changed.replace(/\.0+(?=[0-9a-z])/g, "."))
        }
      }),
    runs,
  )
})
