/**
 * A dead letter read back: what broker/deadLetter.ts wrote, with the request as it was sent.
 *
 * A letter goes by the sequence number of its first message in the dead-letter stream. One that was kept in parts is put
 * together again. What somebody else published on a dead-letter subject is shown as such, so that it can be dropped.
 */
import { Option, Schema } from "effect"
import type { Stamp } from "../contract/LogEntry.ts"
import { letterHeader, letterId } from "../broker/deadLetter.ts"
import { unkept } from "../broker/keptHeaders.ts"
import { type Headers, parseHeaders } from "../nats/headers.ts"

/** The code of a message that is no dead letter of ours. */
export const foreignCode = "foreign"

export interface Letter {
  /** Of its first message in the dead-letter stream. */
  readonly seq: number
  /** Of all its messages; more than one where it was kept in parts. */
  readonly seqs: ReadonlyArray<number>
  /** When it was stored there, in nanoseconds. */
  readonly refusedAt: bigint
  readonly code: string
  readonly reason: string
  /** Where the request was published. */
  readonly subject: string
  /** The request's own stamp; `undefined` for what is no dead letter of ours. */
  readonly stamp: Stamp | undefined
  /** The request's, with their original names; a character for each byte. */
  readonly headers: Headers
  readonly payload: Uint8Array
  /** Parts that the stream does not hold. Then payload and headers are unknown. */
  readonly missingParts: number
}

/** A message of the dead-letter stream. */
export interface StoredMessage {
  readonly seq: number
  readonly timestamp: bigint
  readonly subject: string
  /** The header block, a character for each byte. */
  readonly headers: string
  readonly payload: Uint8Array
}

/** One message, read; `part` where it is one of several. */
interface Piece {
  readonly letter: Letter
  readonly part: { readonly number: number; readonly count: number; readonly headersSize: number } | undefined
  /** The same for all parts of a letter. */
  readonly identity: string
}

const reasonNames = [
  letterHeader.code,
  letterHeader.reason,
  letterHeader.subject,
  letterHeader.seq,
  letterHeader.timestamp,
  letterHeader.id,
]

const digits = (text: string | undefined): number | undefined =>
  text !== undefined && /^\d{1,15}$/.test(text) ? Number(text) : undefined

const partPattern = /^([1-9]\d{0,5})\/([1-9]\d{0,5})$/

const readPart = (headers: Headers): Piece["part"] => {
  const [[partName, part] = [], [sizeName, size] = []] = headers
  const match = partName === letterHeader.part ? partPattern.exec(part ?? "") : null
  const headersSize = sizeName === letterHeader.headersSize ? digits(size) : undefined
  if (match === null || headersSize === undefined) return undefined
  return { number: Number(match[1]), count: Number(match[2]), headersSize }
}

/** Reads one message. Ours are told by their place: a sender's header of the same name comes behind. */
const readPiece = (message: StoredMessage): Piece => {
  const headers = parseHeaders(message.headers)
  const added = new Map(headers.slice(0, reasonNames.length))
  const [code, reason, subject, seqText, timestamp, id] = reasonNames.map((name) => added.get(name))
  const seq = digits(seqText)
  const stamp =
    seq !== undefined && /^\d{1,19}$/.test(timestamp ?? "") ? { seq, timestamp: BigInt(timestamp!) } : undefined
  const known = { seq: message.seq, seqs: [message.seq], refusedAt: message.timestamp, payload: message.payload }
  const name = stamp === undefined ? "" : letterId(subject ?? "", stamp.seq, stamp.timestamp)
  // Refused again after a retry: there is a prefix, so that it is another letter.
  const identity = `${(id ?? "").slice(0, Math.max(0, (id ?? "").lastIndexOf(name)))}${name}`
  const part = id === identity ? undefined : readPart(headers.slice(reasonNames.length))
  const isOurs =
    code !== undefined && reason !== undefined && subject !== undefined && stamp !== undefined && id !== undefined
  if (!isOurs || (id !== identity && part === undefined)) {
    const foreign = { code: foreignCode, reason: "not a dead letter of objectlog", subject: message.subject }
    return {
      letter: { ...known, ...foreign, stamp: undefined, headers, missingParts: 0 },
      part: undefined,
      identity: "",
    }
  }
  const own = headers.slice(reasonNames.length).map(unkept)
  const letter = { ...known, code, reason, subject, stamp, headers: part === undefined ? own : [], missingParts: 0 }
  return { letter, part, identity }
}

const Block = Schema.fromJsonString(Schema.Array(Schema.Tuple([Schema.String, Schema.Array(Schema.String)])))
const decodeBlock = Schema.decodeUnknownOption(Block)

/** Headers and payload out of all parts; `undefined` where they are not ours after all. */
const join = (payloads: ReadonlyArray<Uint8Array>, headersSize: number) => {
  const whole = Buffer.concat(payloads)
  const block = decodeBlock(whole.subarray(0, headersSize).toString())
  if (Option.isNone(block)) return undefined
  const headers = block.value.flatMap(([name, values]) => values.map((value) => [name, value] as const))
  return { headers, payload: whole.subarray(headersSize) }
}

interface Open {
  readonly letter: Letter
  readonly seqs: Array<number>
  readonly payloads: Map<number, Uint8Array>
  readonly count: number
}

/** Puts letters together from the messages of the stream, in their order. */
export class LetterAssembly {
  readonly #open = new Map<string, Open>()

  /** The letter that is complete with this message, if one is. */
  accept(message: StoredMessage): Letter | undefined {
    const { identity, letter, part } = readPiece(message)
    if (part === undefined) return letter
    const open: Open = this.#open.get(identity) ?? { letter, seqs: [], payloads: new Map(), count: part.count }
    this.#open.set(identity, open)
    // A part that was stored twice, after the broker's duplicate window: one letter has both.
    open.seqs.push(message.seq)
    open.payloads.set(part.number, message.payload)
    if (open.payloads.size < open.count) return undefined
    this.#open.delete(identity)
    const payloads = Array.from({ length: open.count }, (_, index) => open.payloads.get(index + 1))
    const whole = payloads.every((payload) => payload !== undefined) ? join(payloads, part.headersSize) : undefined
    return whole === undefined ? this.#incomplete(open) : { ...open.letter, seqs: open.seqs, ...whole }
  }

  /** Letters of which a part is missing. */
  rest(): ReadonlyArray<Letter> {
    const rest = [...this.#open.values()].map((open) => this.#incomplete(open))
    this.#open.clear()
    return rest
  }

  #incomplete({ count, letter, payloads, seqs }: Open): Letter {
    return { ...letter, seqs, payload: new Uint8Array(), missingParts: Math.max(1, count - payloads.size) }
  }
}
