/** Events as the contract shows them, read without a line of the program's own codec, which would hide its mistakes. */

export interface Entry {
  readonly position: number
  readonly seq: number
  /** Unix milliseconds. */
  readonly timestamp: number
  readonly log: string
}

export interface Body {
  readonly type: "append" | "query"
  readonly status: "ok" | "error"
  readonly position?: number
  readonly seq?: number
  readonly timestamp?: number
  readonly duplicate?: boolean
  readonly request_id?: string
  readonly error?: { readonly code: string; readonly message: string }
  readonly snapshot?: string
  readonly page?: number
  readonly last?: boolean
  readonly next?: string
  readonly entries?: ReadonlyArray<Entry>
}

export interface Event {
  readonly subject: string
  /** Where every digit of an id is. */
  readonly text: string
  readonly body: Body
}

export const parseEvent = (subject: string, text: string): Event => ({ subject, text, body: JSON.parse(text) as Body })

/** An event's object: beyond 2^53 only the text has its digits. */
export const idText = (text: string): string | undefined =>
  /^\{"type":"[a-z]+","status":"[a-z]+","id":(\d+)/.exec(text)?.[1]
