/**
 * What the broker says of a delivery in its reply subject:
 * `$JS.ACK.<stream>.<consumer>.<count>.<stream seq>.<consumer seq>.<nanoseconds>.<pending>`, with a domain and the hash of an account
 * before the stream where the server has a domain.
 */

export interface AckSubject {
  /** How often the message was delivered, this time included. */
  readonly deliveryCount: number
  /** Its number in the stream. */
  readonly seq: number
  /** When the stream stored it, Unix nanoseconds. */
  readonly timestamp: bigint
  /** How many messages the consumer still has to deliver. */
  readonly pending: number
}

/** The decimal number between two places. */
export const numberIn = (text: string, from: number, to: number): number => {
  let value = 0
  for (let at = from; at < to; at++) value = value * 10 + text.charCodeAt(at) - 0x30
  return value
}

/** Where the dots of a subject are; of all of them, one after the other. */
const dots: Array<number> = []

const dotsWithoutDomain = 8

export const parseAckSubject = (subject: string): AckSubject => {
  // One look for each dot: to split it would make nine texts.
  let count = 0
  for (let at = subject.indexOf("."); at >= 0; at = subject.indexOf(".", at + 1)) dots[count++] = at
  const first = count === dotsWithoutDomain ? 3 : 5
  const [beforeCount, beforeSeq, afterSeq, beforeTime, afterTime] = [
    dots[first]!,
    dots[first + 1]!,
    dots[first + 2]!,
    dots[first + 3]!,
    dots[first + 4]!,
  ]
  // Newer servers may add tokens at the end.
  const end = count > first + 5 ? dots[first + 5]! : subject.length
  return {
    deliveryCount: numberIn(subject, beforeCount + 1, beforeSeq),
    seq: numberIn(subject, beforeSeq + 1, afterSeq),
    timestamp: BigInt(subject.slice(beforeTime + 1, afterTime)),
    pending: numberIn(subject, afterTime + 1, end),
  }
}
