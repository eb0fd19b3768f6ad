/** What the load generator measures and writes: latencies, due times, texts, events. */
import { assert, describe, it } from "@effect/vitest"
import { Arbitrary, Effect, Fiber } from "effect"
import { TestClock } from "effect/testing"
import { parseSize } from "../../src/cli/load.ts"
import { type LoadEvent, readEvent } from "../../src/load/events.ts"
import { Histogram } from "../../src/load/Histogram.ts"
import { pace, Schedule } from "../../src/load/Schedule.ts"
import { payloadMax, Texts } from "../../src/load/Texts.ts"
import { int, pick } from "../contract/arbitraries.ts"

describe("Histogram", () => {
  it.prop(
    "gives quantiles at most 1.6 % too high, and never too low",
    [Arbitrary.array(int(0, 4_000_000_000), { minLength: 1, maxLength: 300 }), pick([0.01, 0.5, 0.9, 0.99, 1])],
    ([micros, q]) => {
      const histogram = new Histogram()
      for (const value of micros) histogram.record(value / 1_000)
      const exact = micros.toSorted((a, b) => a - b)[Math.max(1, Math.ceil(micros.length * q)) - 1]! / 1_000
      const got = histogram.quantileMillis(q)
      assert.isAtLeast(got, exact)
      assert.isAtMost(got, exact * 1.016 + 0.001)
    },
    { arbitrary: { runs: 300 } },
  )

  it("takes what is out of range, and is empty after a reset", () => {
    const histogram = new Histogram()
    assert.strictEqual(histogram.quantileMillis(0.5), 0)
    histogram.record(-1)
    histogram.record(1e12)
    assert.strictEqual(histogram.total, 2)
    assert.strictEqual(histogram.quantileMillis(0.5), 0)
    assert.strictEqual(histogram.maxMillis, 1e12)
    histogram.reset()
    assert.strictEqual(histogram.total + histogram.maxMillis + histogram.quantileMillis(1), 0)
  })
})

describe("Schedule", () => {
  it("has fixed due times, the first at once", () => {
    const schedule = new Schedule(50, 1_000)
    assert.strictEqual(schedule.total, 50)
    assert.deepStrictEqual(
      [0, 19.9, 20, 500, 999, 5_000].map((at) => schedule.dueBy(at)),
      [1, 1, 2, 26, 50, 50],
    )
    assert.strictEqual(schedule.dueAtMillis(25), 500)
  })

  it.effect(
    "is kept whatever a send has to wait for: what is late is sent at once, with the time at which it was due",
    () =>
      Effect.gen(function* () {
        const sent: Array<number> = []
        let offered = 0
        let blocked = false
        const fiber = yield* Effect.forkChild(
          pace(new Schedule(10, 1_000), {
            offered: (count) => (offered = count),
            send: (due) => {
              if (!blocked) sent.push(due)
              return !blocked
            },
          }),
        )
        yield* TestClock.adjust(250)
        assert.deepStrictEqual(sent, [0, 100, 200])
        blocked = true
        yield* TestClock.adjust(300)
        assert.deepStrictEqual([sent.length, offered], [3, 6])
        blocked = false
        yield* TestClock.adjust(1)
        assert.deepStrictEqual(sent, [0, 100, 200, 300, 400, 500])
        yield* TestClock.adjust(348)
        assert.strictEqual(sent.length, 9)
        yield* TestClock.adjust(1)
        yield* Fiber.join(fiber)
        assert.deepStrictEqual(sent.slice(6), [600, 700, 800, 900])
      }),
  )

  it.effect("ends when the time is over, with what could not be sent", () =>
    Effect.gen(function* () {
      let offered = 0
      const fiber = yield* Effect.forkChild(
        pace(new Schedule(100, 500), { offered: (count) => (offered = count), send: () => false }),
      )
      yield* TestClock.adjust(500)
      yield* Fiber.join(fiber)
      assert.strictEqual(offered, 50)
    }),
  )

  it("works for few a minute, and sends one at least", () => {
    const schedule = new Schedule(10 / 60, undefined)
    assert.strictEqual(schedule.total, Number.POSITIVE_INFINITY)
    assert.strictEqual(schedule.dueBy(5_999), 1)
    assert.strictEqual(schedule.dueBy(6_001), 2)
    assert.strictEqual(new Schedule(0.001, 10).total, 1)
  })
})

describe("Texts", () => {
  it.prop(
    "have the size that is asked for, follow from their name, and come back from it",
    [int(0, 999_999), int(1, 2 ** 40), int(1, 300), int(0, 300)],
    ([object, number, min, more]) => {
      const size = { min, max: min + more }
      const texts = new Texts("abc123", size)
      const name = texts.name(object, number)
      const log = texts.log(object, number)
      assert.strictEqual(log, new Texts("abc123", size).log(object, number))
      assert.isAtLeast(log.length, min)
      assert.isAtMost(log.length, Math.max(size.max, name.length))
      assert.deepStrictEqual(texts.parse(log), { object, number })
      assert.deepStrictEqual(texts.parse(name), { object, number })
      assert.strictEqual(JSON.parse(texts.logJson(object, number)), log)
      assert.isAtMost(Buffer.byteLength(texts.logJson(object, number)), payloadMax(size))
    },
    { arbitrary: { runs: 60 } },
  )

  it("are of all kinds, and those of others are not taken for them", () => {
    const texts = new Texts("abc123", { min: 400, max: 400 })
    const logs = Array.from({ length: 64 }, (_, index) => texts.log(0, index + 1))
    assert.strictEqual(new Set(logs).size, 64)
    assert.isTrue(logs.some((log) => log.includes("\u0000") && !log.isWellFormed() && log.includes("漢")))
    for (const other of ["", "abc123", "abc123.", "abc124.1.1", "abc123.1.x!", "abc123.1", "abc123.1.1x,"]) {
      assert.isUndefined(texts.parse(other), other)
    }
  })
})

describe("events", () => {
  const read = (text: string) => readEvent(Buffer.from(text), "run001.")

  it("are read with all digits, also where they are spelled otherwise", () => {
    const place = { position: 17, seq: 1017, timestamp: 1763922300123 }
    const expected: LoadEvent = {
      type: "append",
      id: "18446744073709551615",
      requestId: "run001.1.a",
      ...place,
      duplicate: false,
    }
    const usual = `{"type":"append","status":"ok","id":18446744073709551615,"position":17,"seq":1017,"timestamp":1763922300123`
    assert.deepStrictEqual(read(`${usual},"request_id":"run001.1.a"}`), expected)
    assert.deepStrictEqual(read(`${usual},"duplicate":true,"request_id":"run001.1.a"}`), {
      ...expected,
      duplicate: true,
    })
    assert.deepStrictEqual(
      read(
        `{ "request_id": "run001.1.a", "id": 18446744073709551615, "timestamp": 1763922300123, "seq": 1017, "position": 17, "status": "ok", "type": "append", "new": {} }`,
      ),
      expected,
    )
  })

  it("of others, and what is no event, are passed over", () => {
    for (const text of [
      "",
      "run001.",
      "{}",
      `{"type":"append","status":"ok","id":1,"position":1,"seq":1,"timestamp":1}`,
      `{"type":"append","status":"ok","id":1,"position":1,"seq":1,"timestamp":1,"request_id":"run002.1.1"}`,
      `{"type":"query","status":"ok","id":1,"snapshot":"1.s","page":0,"last":true,"entries":[{"position":1,"seq":1,"timestamp":1,"log":"run001.0.1"}]}`,
    ]) {
      assert.isUndefined(read(text), text)
    }
  })

  it("refusals and pages", () => {
    assert.deepStrictEqual(
      read(`{"type":"append","status":"error","id":1,"error":{"code":"c","message":"m"},"request_id":"run001.1.1"}`),
      { type: "refused", requestId: "run001.1.1", code: "c", reason: "m" },
    )
    const page = read(
      `{"type":"query","status":"ok","id":1,"snapshot":"1.s","page":2,"last":true,"entries":[{"position":1,"seq":2,"timestamp":3,"log":"l"}],"next":"n","request_id":"run001.read-1"}`,
    )
    assert.deepStrictEqual(page, {
      type: "query",
      requestId: "run001.read-1",
      snapshot: "1.s",
      page: 2,
      last: true,
      entries: [{ position: 1, seq: 2, timestamp: 3, log: "l" }],
      next: "n",
    })
  })
})

it("a size is a number or a range", () => {
  assert.deepStrictEqual(parseSize("200"), { min: 200, max: 200 })
  assert.deepStrictEqual(parseSize("10-2000"), { min: 10, max: 2000 })
  for (const wrong of ["", "0", "-5", "5-", "9-3", "1-2-3", "1.5", "x"]) assert.isUndefined(parseSize(wrong), wrong)
})
