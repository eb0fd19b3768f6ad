/** `traceparent` and `tracestate` as W3C Trace Context defines them: what is read, what is passed on, what is ignored. */
import { assert, describe, it } from "@effect/vitest"
import * as draw from "../contract/arbitraries.ts"
import { checkedState, formatParent, parseParent, stateLengthMax } from "../../src/trace/traceContext.ts"

const traceId = "4bf92f3577b34da6a3ce929d0e0e4736"
const spanId = "00f067aa0ba902b7"

describe("traceparent", () => {
  it("names the sender's span and whether it is sampled", () => {
    assert.deepStrictEqual(parseParent(`00-${traceId}-${spanId}-01`), { traceId, spanId, sampled: true })
    assert.deepStrictEqual(parseParent(`00-${traceId}-${spanId}-00`), { traceId, spanId, sampled: false })
    // Other flags say nothing here.
    assert.deepStrictEqual(parseParent(`00-${traceId}-${spanId}-fe`), { traceId, spanId, sampled: false })
    assert.deepStrictEqual(parseParent(`00-${traceId}-${spanId}-03`), { traceId, spanId, sampled: true })
  })

  it("of a later version may go on, after a hyphen", () => {
    assert.deepStrictEqual(parseParent(`cc-${traceId}-${spanId}-01-what-comes`), { traceId, spanId, sampled: true })
    assert.isUndefined(parseParent(`cc-${traceId}-${spanId}-01.what`))
    assert.isUndefined(parseParent(`00-${traceId}-${spanId}-01-what-comes`))
    assert.isUndefined(parseParent(`00-${traceId}-${spanId}-01-`))
  })

  it("is ignored where it is malformed", () => {
    for (const text of [
      "",
      "00",
      `00-${traceId}-${spanId}`,
      `00-${traceId}-${spanId}-1`,
      `0-${traceId}-${spanId}-01`,
      `ff-${traceId}-${spanId}-01`,
      `00-${traceId.toUpperCase()}-${spanId}-01`,
      `00-${traceId.slice(1)}-${spanId}-01`,
      `00-${traceId}-${spanId}0-01`,
      `00-${"0".repeat(32)}-${spanId}-01`,
      `00-${traceId}-${"0".repeat(16)}-01`,
      `00-${traceId}-${spanId}-0g`,
      ` 00-${traceId}-${spanId}-01`,
      `00-${traceId}-${spanId}-01\n`,
      `00_${traceId}_${spanId}_01`,
    ]) {
      assert.isUndefined(parseParent(text), JSON.stringify(text))
    }
  })

  it("is written as it is read", () => {
    for (const text of [`00-${traceId}-${spanId}-01`, `00-${traceId}-${spanId}-00`]) {
      assert.strictEqual(formatParent(parseParent(text)!), text)
    }
  })
})

describe("tracestate", () => {
  it("is passed on as it is", () => {
    for (const text of ["a=1", "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7", "fw529a3039@dt=FfAAA,b= x y"]) {
      assert.strictEqual(checkedState(text), text)
    }
    assert.strictEqual(checkedState(`a=${"x".repeat(256)}`)?.length, 258)
  })

  it("is passed on without white space around its members and without empty ones", () => {
    assert.strictEqual(checkedState(" a=1 \t,, \t ,\tb= 2 3 ,"), "a=1,b= 2 3")
  })

  it("is dropped where a member has other white space around it, which would be a line end in another encoding", () => {
    for (const space of ["\r", "\n", "\v", "\f", "\u00a0", "\u200a", "\u2028", "\u3000", "\ufeff"]) {
      for (const text of [`a=b,${space}c=d`, `a=b${space},c=d`, `${space}a=b`, `a=b${space}`]) {
        assert.isUndefined(checkedState(text), JSON.stringify(text))
      }
    }
  })

  it.prop("is visible ASCII and blanks, whatever it was", [draw.text, draw.text], ([one, other]) => {
    for (const text of [one, `a=${one}`, `a=1,${one}b=${other}`, `a=${one},${other}b=1`]) {
      const state = checkedState(text)
      if (state === undefined) continue
      assert.match(state, /^[!-~](?:[ -~]*[!-~])?$/)
      assert.strictEqual(checkedState(state), state)
    }
  })

  it("is dropped where it is malformed or too long", () => {
    for (const text of ["", ",", "a", "a=", "=1", "A=1", "a=1=2", "a=é", "a=1,a=2", "a=1;b=2 ,c", "a b=1"]) {
      assert.isUndefined(checkedState(text), JSON.stringify(text))
    }
    assert.isUndefined(checkedState(`a=${"x".repeat(257)}`))
    const members = (count: number) => Array.from({ length: count }, (_, i) => `k${i}=v`).join(",")
    assert.isDefined(checkedState(members(32)))
    assert.isUndefined(checkedState(members(33)))
    const long = `a=${"x".repeat(250)},b=${"x".repeat(250)}`
    assert.isDefined(checkedState(`${long},c=${"x".repeat(stateLengthMax - long.length - 3)}`))
    assert.isUndefined(checkedState(`${long},c=${"x".repeat(stateLengthMax - long.length - 2)}`))
  })
})
