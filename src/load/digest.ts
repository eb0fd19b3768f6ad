/** A number for an entry, of 32 bits: sums of them tell whether two reads brought the same entries, in any order. */
import type { Entry } from "../contract/Event.ts"

const step = (hash: number, value: number): number => Math.imul(hash ^ value, 0x0100_0193)

const digestOf = ({ log, position, seq, timestamp }: Entry): number => {
  let hash = 0x811c_9dc5
  for (let at = 0; at < log.length; at++) hash = step(hash, log.charCodeAt(at))
  // Numbers up to 2^53 in halves: bit operations see 32 bits.
  for (const value of [position, seq, timestamp]) hash = step(step(hash, value | 0), Math.floor(value / 2 ** 32))
  hash = Math.imul(hash ^ (hash >>> 16), 0x85eb_ca6b)
  return (hash ^ (hash >>> 13)) >>> 0
}

/** Stays exact: a sum below 2^49. */
const digestEnd = 2 ** 48

export const addDigest = (sum: number, entry: Entry): number => (sum + digestOf(entry)) % digestEnd
