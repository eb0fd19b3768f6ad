/** The closed set of error codes. */

/** Every code that an error event can carry; docs/contract.md explains each. */
export const errorCodes = [
  "invalid_json",
  "invalid_message",
  "invalid_reply_to",
  "invalid_cursor",
  "log_too_large",
  "entry_too_large",
  "entry_rejected",
  "read_failed",
] as const

export type ErrorCode = (typeof errorCodes)[number]
