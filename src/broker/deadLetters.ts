/**
 * Dead letters read back, for an operator: what deadLetter.ts wrote, with the request as it was sent.
 *
 * A letter goes by the sequence number of its first message in the dead-letter stream. One that was kept in parts is put
 * together again. What somebody else published on a dead-letter subject is shown as such, so that it can be dropped.
 */
import { AckPolicy, DeliverPolicy, type JetStreamManager } from "@nats-io/jetstream"
import { createInbox, type Msg, type NatsConnection } from "@nats-io/transport-node"
import { Effect, Option, Schema, Stream } from "effect"
import type { Stamp } from "../domain/LogEntry.ts"
import { BrokerUnavailable } from "./Broker.ts"
import { fromKept, letterHeader, letterId } from "./deadLetter.ts"
import { type Headers, headerText, parseHeaders } from "./headers.ts"
import { attempt } from "./provision.ts"

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

// --- The pure parts

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
  const [code, reason, subject, seqText, timestamp, id] = reasonNames.map((name, at) =>
    headers[at]?.[0] === name ? headers[at][1] : undefined,
  )
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
  const own = headers.slice(reasonNames.length).map(([name, value]) => [fromKept(name), value] as const)
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

// --- The stream

/** Messages and bytes of one request; it must take the largest message at least. */
const batchMessages = 500
const batchBytes = 8 * 1024 * 1024

/** How long a request stays open, and how long without any answer is too long, in milliseconds. */
const expiresMillis = 2_000
const silenceMillis = 10_000

/** A letter's parts are stored within a moment; so much before the given time a look for them begins, in nanoseconds. */
const partsSpread = 60_000_000_000n

export interface Selection {
  /** Exactly this subject of the request. */
  readonly subject?: string | undefined
  /** Refused at or after this time, in nanoseconds. */
  readonly since?: bigint | undefined
  /** From and up to these messages of the stream. */
  readonly from?: number | undefined
  readonly upTo?: number | undefined
}

export interface DeadLetters {
  /** Letters that are there now, oldest first. */
  readonly read: (selection?: Selection) => Stream.Stream<Letter, BrokerUnavailable>
  /** Those of these numbers that exist; a number may be that of any part. */
  readonly find: (seqs: ReadonlyArray<number>) => Effect.Effect<ReadonlyArray<Letter>, BrokerUnavailable>
  /** Deletes a letter with all its parts; succeeds where it is gone already. */
  readonly remove: (letter: Letter) => Effect.Effect<void, BrokerUnavailable>
}

const toStored = (message: Msg): StoredMessage & { readonly pending: number } => {
  const tokens = message.reply!.split(".")
  const first = tokens.length === 9 ? 5 : 7
  return {
    seq: Number(tokens[first]),
    timestamp: BigInt(tokens[first + 2]!),
    pending: Number(tokens[first + 3]),
    subject: message.subject,
    headers: headerText(message, message.reply!.length),
    payload: message.data,
  }
}

/** A consumer of its own, in the server's memory, gone with the scope or a minute after its reader. */
const openConsumer = Effect.fnUntraced(function* (
  jsm: JetStreamManager,
  stream: string,
  deadTopic: string,
  { from, since, subject }: Selection,
) {
  const start = since === undefined ? undefined : new Date(Number((since - partsSpread) / 1_000_000n))
  return yield* Effect.acquireRelease(
    attempt("read dead letters", () =>
      jsm.consumers.add(stream, {
        ack_policy: AckPolicy.None,
        filter_subject: subject === undefined ? `${deadTopic}.>` : `${deadTopic}.${subject}`,
        inactive_threshold: 60_000_000_000,
        mem_storage: true,
        ...(from !== undefined
          ? { deliver_policy: DeliverPolicy.StartSequence, opt_start_seq: Math.max(1, from) }
          : start !== undefined && start.getTime() > 0
            ? { deliver_policy: DeliverPolicy.StartTime, opt_start_time: start.toISOString() }
            : { deliver_policy: DeliverPolicy.All }),
      }),
    ),
    (info) => attempt("delete consumer", () => jsm.consumers.delete(stream, info.name)).pipe(Effect.ignore),
  )
})

/** Asks for messages once; what came, and whether there is more. */
const fetch = (
  connection: NatsConnection,
  stream: string,
  consumer: string,
  batch: number,
): Effect.Effect<{ readonly messages: ReadonlyArray<StoredMessage>; readonly ended: boolean }, BrokerUnavailable> =>
  Effect.callback((resume) => {
    const inbox = createInbox()
    const messages: Array<StoredMessage> = []
    const finish = (ended: boolean, failure?: string) => {
      clearTimeout(timer)
      subscription.unsubscribe()
      resume(
        failure === undefined
          ? Effect.succeed({ messages, ended })
          : Effect.fail(new BrokerUnavailable({ operation: "read dead letters", cause: new Error(failure) })),
      )
    }
    const timer = setTimeout(() => finish(true, `no answer within ${silenceMillis / 1_000} s`), silenceMillis)
    const subscription = connection.subscribe(inbox, {
      callback: (error, message) => {
        if (error !== null) return finish(true, error.message)
        if (message.subject === inbox) {
          const code = message.headers?.code ?? 503
          // The next message would exceed the bytes, or the request expired: what is left comes with the next request.
          const ordinary = code === 404 || code === 408 || code === 409
          return finish(
            false,
            ordinary ? undefined : `the server answers ${code} ${message.headers?.description ?? ""}`,
          )
        }
        const { pending, ...stored } = toStored(message)
        messages.push(stored)
        if (pending === 0 || messages.length === batch) finish(pending === 0)
      },
    })
    const body = {
      batch,
      max_bytes: Math.max(batchBytes, 2 * (connection.info?.max_payload ?? 0)),
      expires: expiresMillis * 1_000_000,
    }
    connection.publish(`$JS.API.CONSUMER.MSG.NEXT.${stream}.${consumer}`, JSON.stringify(body), { reply: inbox })
    return Effect.sync(() => {
      clearTimeout(timer)
      subscription.unsubscribe()
    })
  })

/** The dead letters of a server; `undefined` where no stream keeps any. */
export const openDeadLetters = Effect.fnUntraced(function* (
  connection: NatsConnection,
  jsm: JetStreamManager,
  deadTopic: string,
): Effect.fn.Return<DeadLetters | undefined, BrokerUnavailable> {
  const info = yield* attempt("find stream", async () => {
    for await (const found of jsm.streams.list(`${deadTopic}.>`)) return found
    return undefined
  })
  if (info === undefined) return undefined
  const stream = info.config.name

  const read = (selection: Selection = {}): Stream.Stream<Letter, BrokerUnavailable> =>
    Stream.unwrap(
      Effect.gen(function* () {
        const { state } = yield* attempt("stream info", () => jsm.streams.info(stream))
        const upTo = Math.min(state.last_seq, selection.upTo ?? Number.MAX_SAFE_INTEGER)
        const consumer = yield* openConsumer(jsm, stream, deadTopic, selection)
        const assembly = new LetterAssembly()
        const isChosen = (letter: Letter) => selection.since === undefined || letter.refusedAt >= selection.since
        const next = Effect.fnUntraced(function* (pending: number) {
          if (pending === 0) return [assembly.rest().filter(isChosen), Option.none<number>()] as const
          const { ended, messages } = yield* fetch(connection, stream, consumer.name, Math.min(batchMessages, pending))
          const letters = messages
            .filter(({ seq }) => seq <= upTo)
            .flatMap((message) => assembly.accept(message) ?? [])
            .filter(isChosen)
          const passed = (messages.at(-1)?.seq ?? 0) >= upTo
          // Others may have deleted what was still to come.
          const left =
            ended || passed
              ? 0
              : (yield* attempt("consumer info", () => jsm.consumers.info(stream, consumer.name))).num_pending
          return [letters, Option.some(left)] as const
        })
        return Stream.paginate(consumer.num_pending, next)
      }),
    ).pipe(Stream.scoped)

  const find = Effect.fnUntraced(function* (seqs: ReadonlyArray<number>) {
    const wanted = new Set(seqs)
    const isWanted = (letter: Letter) => letter.seqs.some((seq) => wanted.has(seq))
    const among = (selection: Selection) => Stream.runCollect(Stream.filter(read(selection), isWanted))
    const near = yield* among({ from: Math.min(...seqs), upTo: Math.max(...seqs) })
    // Its other parts may be anywhere.
    return near.some((letter) => letter.missingParts > 0) ? yield* among({}) : near
  })

  const remove = (letter: Letter) =>
    Effect.forEach(
      letter.seqs,
      (seq) =>
        attempt(`delete ${seq}`, async () => {
          try {
            await jsm.streams.deleteMessage(stream, seq)
          } catch (error) {
            // What is gone already is refused too, with a code that also stands for other failures.
            if ((await jsm.streams.getMessage(stream, { seq })) !== null) throw error
          }
        }),
      { discard: true },
    )

  return { read, find, remove }
})
