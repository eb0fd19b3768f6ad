/**
 * A second reading of the contract for requests, slow and unlike the first: a strict recursive JSON parser that
 * keeps the source of every number, and rules that look at one character after the other.
 */
import type { Addressed, Limits } from "../../src/contract/Request.ts"

/** A number as its digits were written. */
export interface Digits {
  readonly digits: string
}

export type Json = null | boolean | string | Digits | ReadonlyArray<Json> | Members
type Members = ReadonlyMap<string, Json>

const isMembers = (value: Json | undefined): value is Members => value instanceof Map
export const isDigits = (value: Json | undefined): value is Digits =>
  typeof value === "object" && value !== null && "digits" in value

const escapes = new Map(Object.entries({ '"': '"', "\\": "\\", "/": "/", b: "\b", f: "\f", n: "\n", r: "\r", t: "\t" }))

/** Throws where `source` is not JSON. */
export const parse = (source: string): Json => {
  let at = 0
  const space = () => {
    while (at < source.length && " \t\n\r".includes(source[at]!)) at++
  }
  const expect = (word: string) => {
    if (!source.startsWith(word, at)) throw new SyntaxError(`no ${word} at ${at}`)
    at += word.length
  }
  const string = (): string => {
    expect('"')
    let text = ""
    for (;;) {
      const char = source[at++]
      if (char === undefined || char < " ") throw new SyntaxError("string")
      if (char === '"') return text
      if (char !== "\\") text += char
      else if (source[at] === "u") {
        const hex = source.slice(at + 1, at + 5)
        if (!/^[0-9a-fA-F]{4}$/.test(hex)) throw new SyntaxError("escape")
        text += String.fromCharCode(Number.parseInt(hex, 16))
        at += 5
      } else {
        const escaped = escapes.get(source[at++] ?? "")
        if (escaped === undefined) throw new SyntaxError("escape")
        text += escaped
      }
    }
  }
  const list = (end: string, item: () => void): void => {
    at++
    space()
    if (source[at] !== end) {
      for (;;) {
        item()
        space()
        if (source[at] === end) break
        expect(",")
      }
    }
    at++
  }
  const value = (): Json => {
    space()
    const char = source[at]
    if (char === '"') return string()
    if (char === "{") {
      const members = new Map<string, Json>()
      list("}", () => {
        space()
        const name = string()
        space()
        expect(":")
        members.set(name, value())
      })
      return members
    }
    if (char === "[") {
      const items: Array<Json> = []
      list("]", () => void items.push(value()))
      return items
    }
    for (const [word, constant] of [
      ["true", true],
      ["false", false],
      ["null", null],
    ] as const) {
      if (source.startsWith(word, at)) {
        at += word.length
        return constant
      }
    }
    const number = /^-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/.exec(source.slice(at))
    if (number === null) throw new SyntaxError("value")
    at += number[0].length
    return { digits: number[0] }
  }
  const result = value()
  space()
  if (at !== source.length) throw new SyntaxError("rest")
  return result
}

export interface Verdict extends Addressed {
  readonly code: string | undefined
  readonly id: bigint | undefined
  readonly log: string | undefined
}

const idOf = (value: Json | undefined): bigint | undefined => {
  const text = isDigits(value) ? value.digits : value
  if (typeof text !== "string" || text === "" || Array.from(text).some((char) => !"0123456789".includes(char)))
    return undefined
  const id = BigInt(text)
  return id < 2n ** 64n && id.toString() === text ? id : undefined
}

const mayReplyTo = (subject: string, responseTopic: string): boolean => {
  const tokens = subject.split(".")
  const below = ["_INBOX", responseTopic].some((prefix) => {
    const start = prefix.split(".")
    return tokens.length > start.length && start.every((token, index) => tokens[index] === token)
  })
  const clean = (char: string) => char.trim() === char && char > " " && !/[*>\u007f-\u009f\ud800-\udfff]/u.test(char)
  return below && subject.length <= 512 && tokens.every((token) => token !== "" && Array.from(token).every(clean))
}

/** The size in UTF-8 of `log` as JSON, by what each character needs. */
export const sizeOf = (log: string): number => {
  let size = 2
  for (const char of log) {
    const code = char.codePointAt(0)!
    if ('"\\\b\f\n\r\t'.includes(char)) size += 2
    else if (code < 0x20 || (code >= 0xd800 && code <= 0xdfff)) size += 6
    else size += code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x1_0000 ? 3 : 4
  }
  return size
}

/** What both requests share: the members, and the verdict so far. */
const decodeShared = (
  payload: Uint8Array,
  limits: Limits,
): { readonly fields: Members | undefined; readonly verdict: Verdict } => {
  const nothing = { requestId: undefined, replyTo: undefined, id: undefined, log: undefined }
  let fields: Json
  try {
    fields = parse(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(payload))
  } catch {
    return { fields: undefined, verdict: { ...nothing, code: "invalid_json" } }
  }
  if (!isMembers(fields)) return { fields: undefined, verdict: { ...nothing, code: "invalid_message" } }
  const requestId = fields.get("request_id")
  const replyTo = fields.get("reply_to")
  const goodRequestId =
    typeof requestId === "string" && requestId !== "" && requestId.length < 129 ? requestId : undefined
  const goodReplyTo = typeof replyTo === "string" && mayReplyTo(replyTo, limits.responseTopic) ? replyTo : undefined
  const id = idOf(fields.get("id"))
  const known = { requestId: goodRequestId, replyTo: goodReplyTo, id, log: undefined }
  const code =
    requestId !== undefined && goodRequestId === undefined
      ? "invalid_message"
      : replyTo !== undefined && goodReplyTo === undefined
        ? "invalid_reply_to"
        : id === undefined
          ? "invalid_message"
          : undefined
  return { fields, verdict: { ...known, code } }
}

export const decodeAppend = (payload: Uint8Array, limits: Limits): Verdict => {
  const { fields, verdict } = decodeShared(payload, limits)
  if (fields === undefined || verdict.code !== undefined) return verdict
  const log = fields.get("log")
  if (typeof log !== "string") return { ...verdict, code: "invalid_message" }
  return sizeOf(log) > limits.maxPayload - 2_048 ? { ...verdict, code: "log_too_large" } : { ...verdict, log }
}

/** A number that is a whole one from `least` to 2^53 - 1, however it is written. */
const countOf = (value: Json | undefined, least: number): number | undefined => {
  const number = isDigits(value) ? Number(value.digits) : Number.NaN
  return number >= least && number < 2 ** 53 && number % 1 === 0 ? number : undefined
}

export interface ReadVerdict extends Verdict {
  readonly limit?: number
  readonly order?: "asc" | "desc" | "position"
  readonly from?: number
  readonly to?: number
  /** Whether it goes on behind some entry. */
  readonly continues?: boolean
}

/** The order of a cursor of this object: `a` or `d`, object, time, number, or `p`, object, position; all in base 36. */
const cursorOrder = (text: string, id: bigint): "asc" | "desc" | "position" | undefined => {
  const [kind = "", object, ...numbers] = text.split(".")
  const values = numbers.map((digits) => {
    const known =
      digits !== "" && Array.from(digits).every((char) => "0123456789abcdefghijklmnopqrstuvwxyz".includes(char))
    return known
      ? Array.from(digits).reduce((sum, char) => sum * 36n + BigInt(Number.parseInt(char, 36)), 0n)
      : undefined
  })
  const [first, second] = values
  const safe = 2n ** 53n - 1n
  if (object !== id.toString(36) || first === undefined || numbers[0]!.length > 13) return undefined
  if (kind === "p") return values.length === 1 && first <= safe ? "position" : undefined
  if (values.length !== 2 || second === undefined || second > safe || numbers[1]!.length > 11) return undefined
  return first >= 2n ** 63n ? undefined : kind === "a" ? "asc" : kind === "d" ? "desc" : undefined
}

export const decodeRead = (payload: Uint8Array, limits: Limits): ReadVerdict => {
  const { fields, verdict } = decodeShared(payload, limits)
  if (fields === undefined || verdict.code !== undefined) return verdict
  const invalid = { ...verdict, code: "invalid_message" }
  const given = (name: string) => fields.get(name)
  const [limit, from, to] = [countOf(given("limit"), 1), countOf(given("from"), 0), countOf(given("to"), 0)]
  const position = countOf(given("after_position"), 0)
  const order = given("order")
  const after = given("after")
  for (const [name, value] of [
    ["limit", limit],
    ["from", from],
    ["to", to],
    ["after_position", position],
  ] as const) {
    if (given(name) !== undefined && value === undefined) return invalid
  }
  if (order !== undefined && order !== "asc" && order !== "desc") return invalid
  if (after !== undefined && typeof after !== "string") return invalid
  if (position !== undefined && (order === "desc" || after !== undefined)) return invalid
  const ofCursor = after === undefined ? undefined : cursorOrder(after, verdict.id!)
  if (after !== undefined && ofCursor === undefined) return { ...verdict, code: "invalid_cursor" }
  const contradicts = order !== undefined && ofCursor !== undefined && ofCursor !== order
  if (contradicts && !(ofCursor === "position" && order === "asc")) return { ...verdict, code: "invalid_cursor" }
  return {
    ...verdict,
    order: ofCursor ?? (position !== undefined ? "position" : (order ?? "asc")),
    continues: position !== undefined || after !== undefined,
    ...(limit === undefined ? {} : { limit }),
    ...(from === undefined ? {} : { from }),
    ...(to === undefined ? {} : { to }),
  }
}
