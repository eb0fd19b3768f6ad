/** The server's status messages: a block `NATS/1.0 <code> <description>` without a payload, in place of a message. */
import { firstHeader } from "./headers.ts"

export interface Status {
  readonly code: number
  readonly description: string
  /** Of the end of a pull request: how many of its messages won't come; `undefined` where the server doesn't say. */
  readonly pendingMessages: number | undefined
}

/** `undefined` for the headers of a message. */
export const parseStatus = (headers: string): Status | undefined => {
  const [, digits, description = ""] = /^NATS\/1\.0 (\d+) ?([^\r]*)/.exec(headers) ?? []
  if (digits === undefined) return undefined
  const pending = Number.parseInt(firstHeader(headers, "Nats-Pending-Messages") ?? "", 10)
  return { code: Number(digits), description, pendingMessages: Number.isNaN(pending) ? undefined : pending }
}

type Code = Pick<Status, "code" | "description">

export const isHeartbeat = ({ code }: Code): boolean => code === 100

/** Nobody listens on the subject: of an API request, JetStream is not there. */
export const noResponders: Code = { code: 503, description: "No Responders" }

/** The request asked to be answered at once, and there is nothing. */
export const hasNoMessages = ({ code }: Code): boolean => code === 404

/** The request's time is over. */
export const isExpired = ({ code }: Code): boolean => code === 408

/** A pull request ended before its time: used up, or the server or the consumer changes. */
export const isConflict = ({ code }: Code): boolean => code === 409

/** The next message exceeds the bytes that are left of the request, or all of its messages were sent. */
const isUsedUp = ({ code, description }: Code): boolean =>
  isConflict({ code, description }) && /^(?:message size exceeds maxbytes|batch completed)/i.test(description)

/** How a pull request can end that is nothing but its end; everything else casts doubt on its consumer. */
export const isOrdinaryEnd = (status: Code): boolean => hasNoMessages(status) || isExpired(status) || isUsedUp(status)
