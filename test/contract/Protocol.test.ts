/**
 * The contract with clients, byte for byte: which requests are accepted and as what, the exact text of each refusal and
 * whom it may be sent to, and that every event is JSON with all digits of its numbers. A second, slow decoder has to give
 * the same verdict on valid requests and on thousands of damaged ones.
 */
import { assert, describe, it } from "@effect/vitest"
import { Arbitrary, Effect, Result } from "effect"
import { cursorText } from "../../src/contract/Cursor.ts"
import { timestampMax, toMillis } from "../../src/contract/LogEntry.ts"
import { max, type ObjectId } from "../../src/contract/ObjectId.ts"
import {
  decodeAppend as decodeAppendText,
  decodeRead as decodeReadText,
  decodeText,
  messageIdProblem,
  type AppendRequest,
  type Limits,
  type ReadRequest,
  type Refusal,
} from "../../src/contract/Request.ts"
import { encodeAppended, encodeEntry, encodeError, encodePage } from "../../src/contract/Event.ts"
import { jsonBytes, logMaxBytes, pageOverheadBytes } from "../../src/contract/limits.ts"
import type { ErrorCode } from "../../src/contract/ErrorCode.ts"
import * as draw from "./arbitraries.ts"
import * as reference from "./referenceJson.ts"
import { damage, damaged, escaped, spelled } from "./requests.ts"

const limits = { maxPayload: 1_048_576, responseTopic: "response" }
const first = { snapshot: "c.mh34", page: 0 }
const bytes = (text: string): Uint8Array => Buffer.from(text)
const decodeAppend = (payload: Uint8Array, bounds: Limits) => decodeAppendText(decodeText(payload), bounds)
const decodeRead = (payload: Uint8Array, bounds: Limits) => decodeReadText(decodeText(payload), bounds)

const appended = (text: string): AppendRequest => {
  const result = decodeAppend(bytes(text), limits)
  assert.isTrue(Result.isSuccess(result), `${text.slice(0, 200)} was refused`)
  return (result as Result.Success<AppendRequest, Refusal>).success
}

const refused = (payload: string | Uint8Array): Refusal => {
  const result = decodeAppend(typeof payload === "string" ? bytes(payload) : payload, limits)
  assert.isTrue(Result.isFailure(result), `${String(payload).slice(0, 200)} was accepted`)
  return (result as Result.Failure<AppendRequest, Refusal>).failure
}

const readOf = (fields: object): ReadRequest => {
  const result = decodeRead(bytes(JSON.stringify({ id: 5, ...fields })), limits)
  assert.isTrue(Result.isSuccess(result), `${JSON.stringify(fields)} was refused`)
  return (result as Result.Success<ReadRequest, Refusal>).success
}

const readRefused = (fields: object, code: ErrorCode, message: string): void => {
  const result = decodeRead(bytes(JSON.stringify({ id: 5, request_id: "r", reply_to: "_INBOX.x", ...fields })), limits)
  assert.deepStrictEqual(
    result,
    Result.fail({ code, message, requestId: "r", replyTo: "_INBOX.x", id: 5n as ObjectId }),
  )
}

const nobody = { requestId: undefined, replyTo: undefined, id: undefined }
const range = "id: expected an unsigned 64-bit integer in decimal digits, 0 … 18446744073709551615"
const nested = (open: string, close: string) => `${open.repeat(100_000)}1${close.repeat(100_000)}`

describe("payload", () => {
  it.effect("has to be JSON in UTF-8", () =>
    Effect.sync(() => {
      const notUtf8 = "payload: expected JSON in UTF-8, got bytes that are not UTF-8"
      for (const part of [[0xff], [0xc0, 0x80], [0xed, 0xa0, 0x80], [0xe2, 0x82], [0xf5, 0x80, 0x80, 0x80]]) {
        const payload = Buffer.concat([bytes('{"id":1,"log":"'), Uint8Array.from(part), bytes('"}')])
        assert.deepStrictEqual(refused(payload), { code: "invalid_json", message: notUtf8, ...nobody })
      }
      for (const [payload, shown] of [
        ["", '""'],
        ["nonsense", '"nonsense"'],
        ['{"id":1,"log":"a"', '"{\\"id\\":1,\\"log\\":\\"a\\""'],
        ['\ufeff{"id":1}', '"\ufeff{\\"id\\":1}"'],
        ["{'id':1}", "\"{'id':1}\""],
        ["x".repeat(58), `"${"x".repeat(58)}"`],
        ["x".repeat(59), `"${"x".repeat(59)}…`],
        [`${"x".repeat(58)}\u{1f600}`, `"${"x".repeat(58)}\ufffd…`],
      ] as const) {
        const message = `payload: expected a JSON object, got ${shown}`
        assert.deepStrictEqual(refused(payload), { code: "invalid_json", message, ...nobody })
      }
    }),
  )

  it.effect("has to be an object", () =>
    Effect.sync(() => {
      for (const payload of ["[]", '[{"id":1}]', '"x"', "7", "null", "true"]) {
        const message = `payload: expected a JSON object, got ${payload}`
        assert.deepStrictEqual(refused(payload), { code: "invalid_message", message, ...nobody })
      }
    }),
  )

  it.effect("is read where it lies in a larger buffer", () =>
    Effect.sync(() => {
      const whole = bytes('xx{"id":1,"log":"é"}yy')
      assert.deepStrictEqual(
        decodeAppend(new Uint8Array(whole.buffer, whole.byteOffset + 2, whole.length - 4), limits),
        Result.succeed({ id: 1n as ObjectId, log: "é", requestId: undefined, replyTo: undefined }),
      )
    }),
  )

  it.effect("may be nested deeper than the stack is: ignored, or refused with a text, never thrown on", () =>
    Effect.sync(() => {
      assert.strictEqual(appended(`{"log":"","x":${nested("[", "]")},"id":${max}}`).id, max)
      assert.strictEqual(appended(`{"x":${nested('{"id":', "}")},"id":${max},"log":""}`).id, max)
      assert.strictEqual(refused(`{"id":1,"log":${nested("[", "]")}}`).message, "log: expected a string, got […")
      assert.strictEqual(refused(`{"id":${nested('{"id":', "}")}}`).message, `${range}, got {…`)
      assert.strictEqual(refused(nested("[", "]")).message, "payload: expected a JSON object, got […")
      const address = `{"id":1,"log":"","request_id":"r","reply_to":${nested("[", "]")}}`
      assert.strictEqual(refused(address).message, "reply_to: expected a subject below _INBOX or response, got […")
    }),
  )

  it.effect("unknown fields are ignored", () =>
    Effect.sync(() => {
      const request = appended(
        '{"__proto__":{"id":9,"log":"no","reply_to":"x"},"constructor":1,"id":1,"log":"","toString":[]}',
      )
      assert.deepStrictEqual(request, { id: 1n as ObjectId, log: "", requestId: undefined, replyTo: undefined })
      assert.strictEqual(refused('{"__proto__":{"id":9},"log":""}').message, `${range}, got nothing`)
      assert.strictEqual(refused('{"id":1,"__proto__":{"log":""}}').message, "log: expected a string, got nothing")
    }),
  )
})

describe("id", () => {
  it.effect("is exact as number and as string, wherever the member stands", () =>
    Effect.sync(() => {
      for (const id of [0n, 7n, 999_999_999_999_999n, 2n ** 53n, 2n ** 53n + 1n, 2n ** 63n, max - 1n, max]) {
        for (const form of [`${id}`, `"${id}"`]) {
          for (const text of [
            `{"id":${form},"log":"a"}`,
            `{"id": ${form},"log":"a"}`,
            `{"log":"a","id":${form}}`,
            ` \n{ "log" : "a" ,\t"id"\r:\n ${form} } `,
            `{"x":{"id":1,"y":[{"id":2}]},"id":${form},"log":"a","z":{"id":3}}`,
            `{"id":${form},"":{"id":3},"log":"a","__proto__":{"id":4}}`,
            `{"id":1,"log":"a","id":${form}}`,
            `{"id":1.5,"id":null,"id":${max},"id":${form},"log":"a"}`,
            `{"\\u0069d":${form},"log":"a"}`,
            `{"id":1,"log":"a","\\u0069\\u0064":${form}}`,
            `{"id":1,"log":"a","i\\u0064":${form}}`,
            `{"\\u0069d":1,"log":"a","id":${form}}`,
            `{"id":${form},"\\\\u0069d":1,"\\"id":2,"id\\"":3,"ID":4,"i\\\\d":5,"log":"a"}`,
          ]) {
            assert.strictEqual(appended(text).id, id, text)
          }
          const log = { id: id as ObjectId, log: "id", requestId: undefined, replyTo: undefined }
          assert.deepStrictEqual(appended(`{"id":${form},"log":"id"}`), log)
          assert.deepStrictEqual(appended(`{"log":"id","id":${form}}`), log)
          const tricky = '\\"id\\":1,\\\\'
          assert.strictEqual(appended(`{"id":${form},"log":"${tricky}"}`).id, id)
          assert.strictEqual(appended(`{"log":"${tricky}","id":${form}}`).id, id)
        }
      }
    }),
  )

  it.effect("has one form, and nothing else is an id", () =>
    Effect.sync(() => {
      for (const value of [
        "18446744073709551616",
        "99999999999999999999999",
        "-1",
        "-0",
        "1.5",
        "1e3",
        "1E3",
        "1.0",
        "0.0",
        "1e400",
        "-1e400",
        "1e-400",
        '"18446744073709551616"',
        '"-1"',
        '"-0"',
        '"1.5"',
        '"1e3"',
        '"x"',
        '""',
        '" 1"',
        '"1 "',
        '"007"',
        '"0x1"',
        "null",
        "true",
        "[]",
        "[1]",
        "{}",
        '{"id":1}',
      ]) {
        for (const text of [
          `{"id":${value},"log":"a"}`,
          `{"log":"a","id" : ${value} }`,
          `{"id":1,"log":"a","id":${value}}`,
        ]) {
          const message = `${range}, got ${value}`
          assert.deepStrictEqual(refused(text), { code: "invalid_message", message, ...nobody }, text)
        }
      }
      assert.strictEqual(refused('{"log":"a"}').message, `${range}, got nothing`)
      assert.strictEqual(refused(`{"id":${"1".repeat(99)},"log":"a"}`).message, `${range}, got ${"1".repeat(60)}`)
      assert.strictEqual(refused('{"id":007,"log":"a"}').code, "invalid_json")
    }),
  )
})

describe("address", () => {
  const request = (fields: object) => JSON.stringify({ id: 5, log: "", ...fields })

  it.effect("request_id: a string of 1 … 128 characters", () =>
    Effect.sync(() => {
      for (const requestId of ["a", "x".repeat(128), "\u{1f600}".repeat(64), "\u0000", "\ud800", " "]) {
        assert.strictEqual(appended(request({ request_id: requestId })).requestId, requestId)
      }
      for (const [requestId, shown] of [
        ["", '""'],
        ["x".repeat(129), `"${"x".repeat(59)}…`],
        [1, "1"],
        [null, "null"],
        [true, "true"],
        [["a"], '["a"]'],
        [{}, "{}"],
      ] as const) {
        assert.deepStrictEqual(refused(request({ request_id: requestId, reply_to: "_INBOX.x" })), {
          code: "invalid_message",
          message: `request_id: expected a string of 1 … 128 characters, got ${shown}`,
          requestId: undefined,
          replyTo: "_INBOX.x",
          id: 5n as ObjectId,
        })
      }
    }),
  )

  it.effect("reply_to: an inbox or below the response topic, and nowhere else", () =>
    Effect.sync(() => {
      const accepted = ["_INBOX.a", "_INBOX.a.b", "_INBOX.$x-1_", "response.a", "response.a.b.c", "response.é"]
      for (const replyTo of [...accepted, `_INBOX.${"x".repeat(505)}`]) {
        assert.strictEqual(appended(request({ reply_to: replyTo })).replyTo, replyTo)
      }
      const elsewhere = [
        "",
        "x",
        "logs",
        "logs.a",
        "$JS.API.x",
        "response",
        "responses.a",
        "Response.a",
        "a.response.b",
      ]
      const inbox = ["_INBOX", "_INBOX.", "_INBOXES.a", "_inbox.a", "_INBOX..a", "_INBOX.a.", "_INBOX.a..b"]
      const wild = ["_INBOX.*", "_INBOX.>", "_INBOX.a*", "response.*", "response.>", "response.a.>", "response.", ">"]
      const spaces = [
        "_INBOX.a b",
        "_INBOX.a\t",
        " _INBOX.a",
        "_INBOX.a\r\nPUB x 1",
        "_INBOX.a\n",
        "_INBOX.\u00a0",
        "_INBOX.\u2028",
      ]
      const controls = ["_INBOX.a\u0000", "_INBOX.\u0001", "_INBOX.\u007f", "_INBOX.\u0085", "_INBOX.\ud800"]
      const others = [1, null, true, [], {}, ["_INBOX.a"], `_INBOX.${"x".repeat(506)}`]
      for (const replyTo of [...elsewhere, ...inbox, ...wild, ...spaces, ...controls, ...others]) {
        const shown = JSON.stringify(replyTo)
        assert.deepStrictEqual(refused(request({ reply_to: replyTo, request_id: "r" })), {
          code: "invalid_reply_to",
          message: `reply_to: expected a subject below _INBOX or response, got ${shown.length > 60 ? `${shown.slice(0, 60)}…` : shown}`,
          requestId: "r",
          replyTo: undefined,
          id: 5n as ObjectId,
        })
      }
    }),
  )

  it.effect("reply_to: the response topic may have several tokens, and its dots are dots", () =>
    Effect.sync(() => {
      const own = { maxPayload: 1_000_000, responseTopic: "a.response" }
      const verdict = (replyTo: string) => Result.isSuccess(decodeAppend(bytes(request({ reply_to: replyTo })), own))
      assert.deepStrictEqual(
        ["a.response.x", "_INBOX.x", "a.response", "response.x", "aXresponse.x", "a.responses.x"].map(verdict),
        [true, true, false, false, false, false],
      )
    }),
  )

  it.effect("every later refusal carries the address", () =>
    Effect.sync(() => {
      const to = { request_id: "r", reply_to: "response.x" }
      const known = { requestId: "r", replyTo: "response.x" }
      assert.deepStrictEqual(refused(JSON.stringify({ ...to, id: -1, log: "" })), {
        code: "invalid_message",
        message: `${range}, got -1`,
        ...known,
        id: undefined,
      })
      for (const [log, shown] of [
        [undefined, "nothing"],
        [7, "7"],
        [null, "null"],
        [["a"], '["a"]'],
        [{ a: 1 }, '{"a":1}'],
      ] as const) {
        assert.deepStrictEqual(refused(JSON.stringify({ ...to, id: 5, log })), {
          code: "invalid_message",
          message: `log: expected a string, got ${shown}`,
          ...known,
          id: 5n as ObjectId,
        })
      }
    }),
  )

  it.effect("Nats-Msg-Id: at most 1024 bytes, and a text that PostgreSQL can hold", () =>
    Effect.sync(() => {
      assert.strictEqual(messageIdProblem("a\udcff"), "Nats-Msg-Id: expected UTF-8, got bytes that are not UTF-8")
      assert.strictEqual(messageIdProblem("a\u0000"), "Nats-Msg-Id: expected no U+0000, got one")
      for (const good of ["", "a", "x".repeat(1_024), "é".repeat(512), "€".repeat(341)])
        assert.isUndefined(messageIdProblem(good))
      for (const [bad, size] of [
        ["x".repeat(1_025), 1_025],
        ["é".repeat(513), 1_026],
        ["€".repeat(342), 1_026],
      ] as const) {
        assert.strictEqual(messageIdProblem(bad), `Nats-Msg-Id: expected at most 1024 bytes, got ${size}`)
      }
    }),
  )
})

describe("log size", () => {
  it("ends at 16 MiB where the broker takes more, as no shard's client reads more", () => {
    const mebibyte = 1024 * 1024
    for (const maxPayload of [16 * mebibyte, 64 * mebibyte]) {
      assert.strictEqual(logMaxBytes(maxPayload), 16 * mebibyte - 2_048)
    }
    const decode = (count: number) =>
      decodeAppend(bytes(JSON.stringify({ id: 5, log: "a".repeat(count) })), { ...limits, maxPayload: 64 * mebibyte })
    assert.isTrue(Result.isSuccess(decode(16 * mebibyte - 2_050)))
    const refused = decode(17 * mebibyte)
    assert.strictEqual(Result.isFailure(refused) && refused.failure.code, "log_too_large")
  })

  it.effect("the longest log fits, and one byte more is refused", () =>
    Effect.sync(() => {
      for (const maxPayload of [pageOverheadBytes + 2, 4_096, 4_097, 65_536, 1_048_576]) {
        const allowed = logMaxBytes(maxPayload)
        for (const unit of ["a", "\u0000", "\u001f", "\n", '"', "\\", "é", "€", "\u{1f600}", "\ud800", "\u2028"]) {
          const size = jsonBytes(unit) - 2
          assert.strictEqual(reference.sizeOf(unit), size + 2)
          const count = Math.floor((allowed - 2) / size)
          const log = unit.repeat(count) + "a".repeat(allowed - 2 - count * size)
          const own = { ...limits, maxPayload }
          const decode = (text: string) =>
            decodeAppend(bytes(JSON.stringify({ id: 5, log: text, request_id: "r", reply_to: "_INBOX.x" })), own)
          const fits = decode(log)
          assert.isTrue(Result.isSuccess(fits) && fits.success.log === log)
          assert.deepStrictEqual(
            decode(`${log}a`),
            Result.fail({
              code: "log_too_large" as const,
              message: `log: expected at most ${allowed} bytes as JSON, got ${allowed + 1}`,
              requestId: "r",
              replyTo: "_INBOX.x",
              id: 5n as ObjectId,
            }),
          )
          // The largest page around it: longest numbers, cursor and request id.
          const entry = {
            position: Number.MAX_SAFE_INTEGER,
            seq: Number.MAX_SAFE_INTEGER,
            timestamp: timestampMax,
            log,
          }
          const snapshot = `${Number.MAX_SAFE_INTEGER.toString(36)}.${Number.MAX_SAFE_INTEGER.toString(36)}`
          const page = { snapshot, page: Number.MAX_SAFE_INTEGER, last: false, entries: [encodeEntry(entry)] }
          const next = { order: "desc", timestamp: timestampMax, seq: Number.MAX_SAFE_INTEGER } as const
          const text = encodePage(max as ObjectId, { ...page, next }, "\u0000".repeat(128))
          assert.isTrue(Buffer.byteLength(text) + 512 <= maxPayload, `${Buffer.byteLength(text)} of ${maxPayload}`)
        }
      }
    }),
  )
})

describe("read request", () => {
  const plain = {
    id: 5n as ObjectId,
    limit: undefined,
    order: "asc",
    after: undefined,
    from: undefined,
    to: undefined,
    requestId: undefined,
    replyTo: undefined,
  } as const

  it.effect("needs nothing but an id", () =>
    Effect.sync(() => {
      assert.deepStrictEqual(readOf({}), plain)
      assert.deepStrictEqual(readOf({ log: 1, x: 2 }), plain)
      const full = { limit: 1, from: 0, to: 1, order: "desc", request_id: "r", reply_to: "_INBOX.x" }
      const expected = {
        ...plain,
        limit: 1,
        from: 0n,
        to: 1_000_000n,
        order: "desc",
        requestId: "r",
        replyTo: "_INBOX.x",
      }
      assert.deepStrictEqual(readOf(full), expected as ReadRequest)
      assert.strictEqual(readOf({ limit: Number.MAX_SAFE_INTEGER }).limit, Number.MAX_SAFE_INTEGER)
      assert.strictEqual(readOf({ from: 1_763_900_000_000 }).from, 1_763_900_000_000_000_000n)
      assert.strictEqual(readOf({ to: Number.MAX_SAFE_INTEGER }).to, timestampMax)
      assert.deepStrictEqual(decodeRead(bytes("[]"), limits), Result.fail(refused("[]")))
      assert.deepStrictEqual(decodeRead(bytes('{"id":-1}'), limits), Result.fail(refused('{"id":-1}')))
    }),
  )

  it.effect("each field has its bounds", () =>
    Effect.sync(() => {
      const expected = {
        limit: "an integer from 1",
        from: "Unix milliseconds, an integer from 0",
        to: "Unix milliseconds, an integer from 0",
        order: '"asc" or "desc"',
        after_position: "a position, an integer from 0",
        after: "the `next` of an earlier page",
      }
      const never = [null, true, [], {}, 1.5, -1, 2 ** 53]
      const wrong = {
        limit: [...never, 0, "1", ""],
        from: [...never, "0", "now"],
        to: [...never, "0"],
        order: [...never, "", "ASC", "position", 1],
        after_position: [...never, "0"],
        after: [...never, 0],
      }
      for (const [name, values] of Object.entries(wrong)) {
        for (const value of values) {
          const allowed = expected[name as keyof typeof expected]
          readRefused(
            { [name]: value },
            "invalid_message",
            `${name}: expected ${allowed}, got ${JSON.stringify(value)}`,
          )
        }
      }
    }),
  )

  it.effect("after_position reads in commit order, and excludes the other ways to go on", () =>
    Effect.sync(() => {
      for (const position of [0, 7, Number.MAX_SAFE_INTEGER]) {
        const expected = { ...plain, order: "position", after: { order: "position", position } } as const
        assert.deepStrictEqual(readOf({ after_position: position }), expected)
        assert.deepStrictEqual(readOf({ after_position: position, order: "asc" }), expected)
      }
      readRefused(
        { after_position: 0, order: "desc" },
        "invalid_message",
        "after_position: reads in commit order, so order can't be desc",
      )
      readRefused(
        { after_position: 0, after: "p.5.1" },
        "invalid_message",
        "after_position: can't be combined with after",
      )
    }),
  )

  it.effect("after has to be a cursor of this object and order", () =>
    Effect.sync(() => {
      for (const after of ["", "x", "a.5.1", "a.6.1.1", "p.6.1", "a.5.1.1 ", "\u0000"]) {
        const shown = JSON.stringify(after)
        readRefused(
          { after },
          "invalid_cursor",
          `after: expected the next of an earlier page of object 5, got ${shown}`,
        )
      }
      const of = (given: string, order: string) =>
        `after: that cursor is of a read with order ${given}, got order ${order}`
      readRefused({ after: "a.5.1.1", order: "desc" }, "invalid_cursor", of("asc", "desc"))
      readRefused({ after: "d.5.1.1", order: "asc" }, "invalid_cursor", of("desc", "asc"))
      readRefused({ after: "p.5.1", order: "desc" }, "invalid_cursor", of("position", "desc"))
    }),
  )

  it.effect.prop(
    "the next of a page comes back as it was, and its order with it",
    [draw.id, draw.pick(["asc", "desc", "position"] as const), draw.int(0, Number.MAX_SAFE_INTEGER), draw.id],
    ([id, order, count, time]) =>
      Effect.sync(() => {
        const next =
          order === "position" ? { order, position: count } : { order, timestamp: BigInt.asUintN(63, time), seq: count }
        const page = JSON.parse(encodePage(id, { ...first, last: true, entries: [], next }, undefined)) as {
          next: string
        }
        assert.strictEqual(page.next, cursorText(id, next))
        for (const given of order === "position" ? [undefined] : [undefined, order]) {
          const body = JSON.stringify({ id: `${id}`, after: page.next, order: given })
          const result = decodeRead(bytes(body), limits)
          assert.deepStrictEqual(result, Result.succeed({ ...plain, id, order, after: next }))
        }
      }),
    { arbitrary: { runs: 500 } },
  )
})

const compare = (payload: Uint8Array, own: typeof limits): void => {
  const expected = reference.decodeAppend(payload, own)
  const result = decodeAppend(payload, own)
  const got = Result.isSuccess(result) ? { ...result.success, code: undefined } : { ...result.failure, log: undefined }
  const { code, id, log, requestId, replyTo } = got
  assert.deepStrictEqual({ code, id, log, requestId, replyTo }, { ...expected }, Buffer.from(payload).toString())
}

describe("decodeAppend and a slow decoder agree", () => {
  it.effect.prop(
    "on valid requests in every spelling",
    [spelled],
    ([{ text }]) => Effect.sync(() => compare(bytes(text), limits)),
    { arbitrary: { runs: 1_500 } },
  )

  it.effect.prop(
    "on damaged ones",
    [spelled, damage, draw.int(2_040, 2_120)],
    ([{ text }, steps, maxPayload]) =>
      Effect.sync(() => {
        const payload = damaged(Buffer.from(text), steps)
        compare(payload, limits)
        compare(payload, { ...limits, maxPayload })
      }),
    { arbitrary: { runs: 4_000 } },
  )

  it.effect.prop(
    "on the form that is read at once, and on what one character makes of it",
    [
      draw.pick(["0", "7", "00", "-1", "999999999999999", "1000000000000000", "18446744073709551616"]),
      draw.pick(["", "disk 3 replaced", "é\u{1f600}\u2028\u007f", "x".repeat(20)]),
      draw.pick([undefined, "", "r", "x".repeat(128), "x".repeat(129)]),
      draw.pick(["", " ", "  "]),
      draw.int(0, 60),
      draw.pick(['"', "\\", "\0", "\n", "\u001f", " ", "\u00a0", "\t", ",", "0", ".", "}", "{", "id", ""]),
      draw.int(2_040, 2_120),
    ],
    ([id, log, requestId, space, at, character, maxPayload]) =>
      Effect.sync(() => {
        const request = requestId === undefined ? "" : `,${space}"request_id":${space}"${requestId}"`
        const text = `{"id":${space}${id},${space}"log":${space}"${log}"${request}}`
        const [head, tail] = [text.slice(0, at), text.slice(at)]
        for (const each of [text, head + character + tail, head + character + tail.slice(1)]) {
          compare(bytes(each), limits)
          compare(bytes(each), { ...limits, maxPayload })
        }
      }),
    { arbitrary: { runs: 2_000 } },
  )
})

/** The event as a parser that keeps digits reads it: numbers as text, members as entries. */
const plainOf = (value: reference.Json | undefined): unknown =>
  reference.isDigits(value)
    ? `#${value.digits}`
    : value instanceof Map
      ? Object.fromEntries([...value].map(([name, member]) => [name, plainOf(member as reference.Json)]))
      : Array.isArray(value)
        ? value.map(plainOf)
        : value

const event = (text: string): unknown => {
  JSON.parse(text)
  // As it is on the wire.
  return plainOf(reference.parse(Buffer.from(text).toString("utf8")))
}

const placed = Arbitrary.map(
  Arbitrary.all([draw.int(1, Number.MAX_SAFE_INTEGER), draw.int(1, Number.MAX_SAFE_INTEGER), draw.id, draw.int(0, 1)]),
  ([position, seq, time, duplicate]) => ({
    _tag: duplicate === 1 ? ("Duplicate" as const) : ("Stored" as const),
    position,
    seq,
    timestamp: BigInt.asUintN(63, time),
  }),
)
const requestId = Arbitrary.map(draw.text, (text) => (text === "" ? undefined : text))
const codes: ReadonlyArray<ErrorCode> = [
  "invalid_json",
  "invalid_message",
  "invalid_reply_to",
  "invalid_cursor",
  "log_too_large",
  "entry_too_large",
  "entry_rejected",
]

describe("events", () => {
  it.effect("read as the design shows them", () =>
    Effect.sync(() => {
      const id = 42n as ObjectId
      const timestamp = 1_763_922_300_123_456_789n
      assert.strictEqual(
        encodeAppended(id, { _tag: "Stored", position: 17, seq: 1017, timestamp }, "r1"),
        '{"type":"append","status":"ok","id":42,"position":17,"seq":1017,"timestamp":1763922300123,"request_id":"r1"}',
      )
      assert.strictEqual(
        encodeAppended(id, { _tag: "Duplicate", position: 12, seq: 981, timestamp }, undefined),
        '{"type":"append","status":"ok","id":42,"position":12,"seq":981,"timestamp":1763922300123,"duplicate":true}',
      )
      const entry = encodeEntry({ position: 12, seq: 981, timestamp, log: "…" })
      assert.strictEqual(
        encodePage(id, { ...first, last: false, entries: [entry], next: undefined }, undefined),
        '{"type":"query","status":"ok","id":42,"snapshot":"c.mh34","page":0,"last":false,"entries":[{"position":12,"seq":981,"timestamp":1763922300123,"log":"…"}]}',
      )
      assert.strictEqual(
        encodePage(id, { ...first, page: 1, last: true, entries: [], next: { order: "position", position: 36 } }, "r"),
        '{"type":"query","status":"ok","id":42,"snapshot":"c.mh34","page":1,"last":true,"entries":[],"next":"p.16.10","request_id":"r"}',
      )
      const failure = { code: "invalid_message", message: "log: expected a string, got 7", id: undefined } as const
      assert.strictEqual(
        encodeError("append", { ...failure, requestId: "r1" }),
        '{"type":"append","status":"error","error":{"code":"invalid_message","message":"log: expected a string, got 7"},"request_id":"r1"}',
      )
    }),
  )

  it.effect.prop(
    "are JSON with every digit and character, whatever they carry",
    [draw.id, placed, requestId, Arbitrary.array(draw.text, { maxLength: 3 }), draw.pick(codes)],
    ([id, at, request, logs, code]) =>
      Effect.sync(() => {
        const echoed = request === undefined ? {} : { request_id: request }
        const place = { position: `#${at.position}`, seq: `#${at.seq}`, timestamp: `#${at.timestamp / 1_000_000n}` }
        assert.strictEqual(`#${toMillis(at.timestamp)}`, place.timestamp)
        assert.deepStrictEqual(event(encodeAppended(id, at, request)), {
          type: "append",
          status: "ok",
          id: `#${id}`,
          ...place,
          ...(at._tag === "Duplicate" ? { duplicate: true } : {}),
          ...echoed,
        })
        const entries = logs.map((log) => encodeEntry({ ...at, log }))
        assert.deepStrictEqual(
          entries.map(event),
          logs.map((log) => ({ ...place, log })),
        )
        const next = { order: "asc", timestamp: at.timestamp, seq: at.seq } as const
        for (const last of [true, false]) {
          const page = { snapshot: "s", page: at.position, last, entries, next: last ? next : undefined }
          assert.deepStrictEqual(event(encodePage(id, page, request)), {
            type: "query",
            status: "ok",
            id: `#${id}`,
            snapshot: "s",
            page: `#${at.position}`,
            last,
            entries: logs.map((log) => ({ ...place, log })),
            ...(last ? { next: cursorText(id, next) } : {}),
            ...echoed,
          })
        }
        for (const type of ["append", "query"] as const) {
          for (const known of [id, undefined]) {
            const message = logs.join("|")
            assert.deepStrictEqual(event(encodeError(type, { code, message, requestId: request, id: known })), {
              type,
              status: "error",
              ...(known === undefined ? {} : { id: `#${known}` }),
              error: { code, message },
              ...echoed,
            })
          }
        }
      }),
    { arbitrary: { runs: 800 } },
  )

  it.effect.prop(
    "requests round trip: any id, any string",
    [draw.id, draw.text],
    ([id, log]) =>
      Effect.sync(() => {
        for (const form of [`${id}`, `"${id}"`]) {
          for (const text of [`{"id":${form},"log":${JSON.stringify(log)}}`, `{"log":${escaped(log)},"id":${form}}`]) {
            assert.deepStrictEqual(appended(text), { id, log, requestId: undefined, replyTo: undefined })
          }
        }
      }),
    { arbitrary: { runs: 1_000 } },
  )
})
