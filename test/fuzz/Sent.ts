import type { Expected } from "./expect.ts"

/** A message that the broker took, under its subject and sequence number, or why it was not taken. */
export interface Sent {
  readonly expected: Expected
  readonly seq: number | undefined
  readonly reason: string
}
