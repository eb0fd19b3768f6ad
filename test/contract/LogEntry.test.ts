/**
 * What was appended is what comes back, character for character, also where PostgreSQL text can't hold it. Stamps sort by
 * time and then by sequence number; milliseconds, the wire's unit, never change a stamp's order.
 */
import { assert, describe, it } from "@effect/vitest"
import { Arbitrary, Effect } from "effect"
import { compareStamps, fromMillis, fromStored, timestampMax, toMillis, toStored } from "../../src/contract/LogEntry.ts"
import * as draw from "./arbitraries.ts"

const runs = { arbitrary: { runs: 1_000 } }

const stamp = Arbitrary.map(
  Arbitrary.all([draw.int(0, 3), draw.int(0, 3), draw.int(0, Number.MAX_SAFE_INTEGER), draw.int(0, 1)]),
  ([time, seq, large, far]) =>
    far === 0 ? { timestamp: BigInt(time), seq } : { timestamp: timestampMax - BigInt(large), seq: large },
)

describe("stored form", () => {
  it.effect("escapes only what PostgreSQL can't hold", () =>
    Effect.sync(() => {
      for (const log of [
        "",
        "plain",
        'a "b" \\u0000',
        "\u0001\u001f\n",
        "\ufeff",
        "a\ufeff\ufffd",
        "\uffff",
        "\ud83d\ude00",
      ]) {
        assert.deepStrictEqual(toStored(log), { log, escaped: false })
      }
      assert.deepStrictEqual(toStored("a\u0000b"), { log: '"a\\u0000b"', escaped: true })
      assert.deepStrictEqual(toStored("\ud800"), { log: '"\\ud800"', escaped: true })
      assert.deepStrictEqual(toStored("\ufeffa\ufffd"), { log: '"\ufeffa\ufffd"', escaped: true })
      assert.deepStrictEqual(toStored("\udc00\ud800"), { log: '"\\udc00\\ud800"', escaped: true })
      assert.deepStrictEqual(toStored("é\ud83d\ude00\u0000"), { log: '"é\ud83d\ude00\\u0000"', escaped: true })
    }),
  )

  it.effect.prop(
    "gives every string back, after a trip through UTF-8, and holds no U+0000",
    [draw.text],
    ([log]) =>
      Effect.sync(() => {
        const stored = toStored(log)
        assert.isFalse(stored.log.includes("\u0000"))
        assert.strictEqual(fromStored(Buffer.from(stored.log).toString("utf8"), stored.escaped), log)
      }),
    runs,
  )
})

describe("stamps", () => {
  it.effect("sort by time, ties by sequence number", () =>
    Effect.sync(() => {
      const sorted = [
        { timestamp: 0n, seq: 9 },
        { timestamp: 1n, seq: 2 },
        { timestamp: 1n, seq: 10 },
        { timestamp: 2n ** 53n, seq: 1 },
        { timestamp: 2n ** 53n + 1n, seq: 0 },
        { timestamp: timestampMax, seq: Number.MAX_SAFE_INTEGER },
      ]
      assert.deepStrictEqual(sorted.toReversed().toSorted(compareStamps), sorted)
    }),
  )

  it.effect.prop(
    "have a total order: antisymmetric, transitive, and 0 only for the same stamp",
    [stamp, stamp, stamp],
    ([a, b, c]) =>
      Effect.sync(() => {
        assert.isTrue(Math.sign(compareStamps(a, b)) + Math.sign(compareStamps(b, a)) === 0)
        assert.strictEqual(compareStamps(a, b) === 0, a.timestamp === b.timestamp && a.seq === b.seq)
        if (compareStamps(a, b) <= 0 && compareStamps(b, c) <= 0) assert.isTrue(compareStamps(a, c) <= 0)
      }),
    runs,
  )

  it.effect.prop(
    "milliseconds: exact there and back, rounded down, clamped to what a column holds",
    [draw.int(0, Number.MAX_SAFE_INTEGER), draw.int(0, 999_999)],
    ([millis, rest]) =>
      Effect.sync(() => {
        const nanos = fromMillis(millis)
        assert.isTrue(nanos <= timestampMax)
        if (BigInt(millis) <= timestampMax / 1_000_000n) {
          assert.strictEqual(nanos, BigInt(millis) * 1_000_000n)
          assert.strictEqual(toMillis(nanos), millis)
        } else assert.strictEqual(nanos, timestampMax)
        const early = millis % 9_000_000_000_000
        assert.strictEqual(toMillis(fromMillis(early) + BigInt(rest)), early)
      }),
    runs,
  )

  it.effect("milliseconds: the ends of the range", () =>
    Effect.sync(() => {
      assert.strictEqual(fromMillis(0), 0n)
      assert.strictEqual(fromMillis(-0), 0n)
      assert.strictEqual(toMillis(timestampMax), 9_223_372_036_854)
      assert.strictEqual(fromMillis(9_223_372_036_854), 9_223_372_036_854_000_000n)
      assert.strictEqual(fromMillis(9_223_372_036_855), timestampMax)
      assert.strictEqual(fromMillis(Number.MAX_SAFE_INTEGER), timestampMax)
    }),
  )
})
