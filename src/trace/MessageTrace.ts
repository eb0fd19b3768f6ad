/** The trace of one message, from its arrival in a worker until it is settled. It goes along with the delivery. */
import type { Tracer } from "effect"
import type { TraceHeaders } from "./traceContext.ts"

/** What a trace has to know of a message. */
export interface TracedMessage {
  readonly subject: string
  readonly seq: number
  /** How often it was delivered, 1 the first time. */
  readonly deliveryCount: number
  readonly payload: Uint8Array
  /** The first value of a header, or `undefined`. */
  header(name: string): string | undefined
  /** Set when it is taken from the broker; it hears how the message is settled. */
  trace: MessageTrace | undefined
}

export interface MessageTrace {
  /** The span of what is done about the message; `undefined` where it is not sampled. */
  readonly span: Tracer.Span | undefined
  /** Some events about the message are going to be published; gives what they are to carry. */
  readonly send: (events: number) => TraceHeaders | undefined
  /** The broker has stored them. */
  readonly sent: () => void
  /** The message is refused, for this reason. */
  readonly refused: (code: string) => void
  /** The end: it is acknowledged, or given back to be delivered again. */
  readonly settled: (how: "ack" | "retry") => void
}

const nothing = () => {}

/** Of a message that is not sampled, or of a worker that does not trace: its events name its sender as their parent. */
export const passOn = (headers: TraceHeaders): MessageTrace => ({
  span: undefined,
  send: () => headers,
  sent: nothing,
  refused: nothing,
  settled: nothing,
})
