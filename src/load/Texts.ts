/**
 * What the load generator writes: texts that name their append, and whose every character follows from that name, so
 * that an entry can be checked without keeping what was sent.
 *
 * The name is `<run>.<object>.<number>`, the latter two in base 36. It is the request id and the `Nats-Msg-Id` too.
 */

/** Characters of a log text, name included; a text is never shorter than its name. */
export interface Size {
  readonly min: number
  readonly max: number
}

/** Which append a text is of: the object's number in the run, and the append's for that object. */
export interface Name {
  readonly object: number
  readonly number: number
}

/** Different places at which a text's filling can begin. */
const offsets = 8 * 1024

/**
 * One text in so many is made of what is hard to carry: escapes, NUL, several bytes a character, halves of pairs. Not
 * long ones: as JSON such a text takes up to six bytes a character.
 */
const hardEvery = 32
const hardMax = 64 * 1024

const easy = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 -_.:/"
const hard = ['"', "\\", "\n", "\u0000", "\u001f", "\u007f", "é", "漢", "😀", "\ud800", "\u2028", "a", " "]

const mix = (a: number, b: number): number => {
  let hash = Math.imul(a ^ 0x9e37_79b9, 0x85eb_ca6b) ^ Math.imul(b + 0x165667b1, 0xc2b2_ae35)
  hash = Math.imul(hash ^ (hash >>> 15), 0x2c1b_3c6d)
  hash = Math.imul(hash ^ (hash >>> 12), 0x297a_2d39)
  return (hash ^ (hash >>> 15)) >>> 0
}

const pool = (characters: ArrayLike<string>, length: number): string => {
  const parts: Array<string> = []
  for (let i = 0, made = 0; made < length; i++) {
    const part = characters[mix(i, length) % characters.length]!
    parts.push(part)
    made += part.length
  }
  return parts.join("")
}

/** Bytes of a request beside its text: names, numbers, headers. */
const overheadBytes = 2_048

/** The largest payload that texts of this size may need. */
export const payloadMax = ({ max }: Size): number => overheadBytes + (max <= hardMax ? 6 * max : max)

export class Texts {
  readonly run: string
  readonly #size: Size
  readonly #easy: string
  readonly #hard: string

  constructor(run: string, size: Size) {
    this.run = run
    this.#size = size
    this.#easy = pool(easy, offsets + size.max)
    this.#hard = size.max <= hardMax ? pool(hard, offsets + size.max) : this.#easy
  }

  name(object: number, number: number): string {
    return `${this.run}.${object.toString(36)}.${number.toString(36)}`
  }

  /** The log text of an append. */
  log(object: number, number: number): string {
    return this.#fill(object, number, number % hardEvery === 0 ? this.#hard : this.#easy)
  }

  /** The same as JSON. Most texts hold nothing that JSON escapes. */
  logJson(object: number, number: number): string {
    const log = this.log(object, number)
    return number % hardEvery === 0 ? JSON.stringify(log) : `"${log}"`
  }

  #fill(object: number, number: number, filling: string): string {
    const name = this.name(object, number)
    const hash = mix(object, number)
    const { max, min } = this.#size
    const length = min === max ? min : min + (hash % (max - min + 1))
    if (length <= name.length) return name
    const offset = (hash >>> 8) % offsets
    return `${name} ${filling.slice(offset, offset + length - name.length - 1)}`
  }

  /** The append that a text or request id names; `undefined` for one of somebody else. */
  parse(text: string): Name | undefined {
    const { run } = this
    if (!text.startsWith(run) || text.charCodeAt(run.length) !== 0x2e) return undefined
    const match = /^([0-9a-z]{1,7})\.([0-9a-z]{1,10})(?: |$)/.exec(text.slice(run.length + 1, run.length + 21))
    return match === null
      ? undefined
      : { object: Number.parseInt(match[1]!, 36), number: Number.parseInt(match[2]!, 36) }
  }
}

/** How two texts differ, without showing them. */
export const differenceOf = (expected: string, got: string): string => {
  let at = 0
  while (at < expected.length && at < got.length && expected.charCodeAt(at) === got.charCodeAt(at)) at++
  const unit = (text: string) =>
    at < text.length ? `U+${text.charCodeAt(at).toString(16).padStart(4, "0")}` : "the end"
  return `expected ${expected.length} characters, got ${got.length}; character ${at} should be ${unit(expected)} and is ${unit(got)}`
}
