/**
 * A publisher that speaks the NATS protocol on a plain socket: header blocks go out byte for byte, also those that a client
 * library would refuse, and the broker's confirmation tells each message's place in its stream.
 */
import { connect, type Socket } from "node:net"

/** What the broker said of a message. */
export type Confirmation =
  | { readonly stored: true; readonly seq: number }
  | { readonly stored: false; readonly reason: string }

const lineEnd = Buffer.from("\r\n")

export class RawNats {
  readonly #socket: Socket
  readonly #waiting = new Map<string, (confirmation: Confirmation) => void>()
  readonly #pongs: Array<() => void> = []
  readonly #inbox = `_INBOX.raw.${Math.random().toString(36).slice(2)}`
  #received: Buffer = Buffer.alloc(0)
  #sent = 0
  #ended: string | undefined
  /** Largest message that the server takes, headers included. */
  maxPayload = 0

  private constructor(socket: Socket) {
    this.#socket = socket
  }

  /** The URL may carry a user and a password. */
  static async connect(url: string): Promise<RawNats> {
    const { hostname, password: pass, port, username: user } = new URL(url)
    const socket = connect(Number(port), hostname)
    socket.setNoDelay(true)
    const raw = new RawNats(socket)
    socket.on("data", (chunk) => raw.#receive(chunk))
    socket.on("error", (error) => raw.#end(error.message))
    socket.on("close", () => raw.#end("closed"))
    socket.write(
      `CONNECT ${JSON.stringify({ verbose: false, pedantic: false, headers: true, no_responders: true, user, pass })}\r\nSUB ${raw.#inbox}.* 1\r\n`,
    )
    await raw.flush()
    return raw
  }

  /** Publishes at once, in the order of the calls. A header block is written as it is. */
  publish(subject: string, block: Uint8Array | undefined, payload: Uint8Array): Promise<Confirmation> {
    if (this.#ended !== undefined) return Promise.resolve({ stored: false, reason: this.#ended })
    const token = (this.#sent++).toString(36)
    const reply = `${this.#inbox}.${token}`
    const size = payload.byteLength
    this.#socket.cork()
    if (block === undefined) this.#socket.write(`PUB ${subject} ${reply} ${size}\r\n`)
    else {
      this.#socket.write(`HPUB ${subject} ${reply} ${block.byteLength} ${block.byteLength + size}\r\n`)
      this.#socket.write(block)
    }
    this.#socket.write(payload)
    this.#socket.write(lineEnd)
    this.#socket.uncork()
    return new Promise((resolve) => this.#waiting.set(token, resolve))
  }

  /** When the server has handled all that was sent. */
  flush(): Promise<void> {
    return new Promise((resolve) => {
      if (this.#ended !== undefined) return resolve()
      this.#pongs.push(resolve)
      this.#socket.write("PING\r\n")
    })
  }

  close(): Promise<void> {
    return new Promise((resolve) => {
      if (this.#socket.closed) return resolve()
      this.#socket.once("close", () => resolve())
      this.#socket.destroy()
    })
  }

  #receive(chunk: Buffer): void {
    this.#received = this.#received.length === 0 ? chunk : Buffer.concat([this.#received, chunk])
    for (;;) {
      const end = this.#received.indexOf(lineEnd)
      if (end < 0) return
      const line = this.#received.subarray(0, end).toString("latin1")
      const [verb = "", ...words] = line.split(" ")
      let next = end + 2
      if (verb === "MSG" || verb === "HMSG") {
        const size = Number(words.at(-1))
        if (this.#received.length < next + size + 2) return
        const headers = verb === "HMSG" ? Number(words.at(-2)) : 0
        const body = this.#received.subarray(next + headers, next + size)
        next += size + 2
        this.#confirm(words[0]!.slice(this.#inbox.length + 1), body)
      } else if (verb === "INFO") {
        this.maxPayload = (JSON.parse(line.slice(5)) as { max_payload: number }).max_payload
      } else if (verb === "PING") this.#socket.write("PONG\r\n")
      else if (verb === "PONG") this.#pongs.shift()?.()
      else if (verb === "-ERR") this.#end(line)
      this.#received = this.#received.subarray(next)
    }
  }

  #confirm(token: string, body: Buffer): void {
    const resolve = this.#waiting.get(token)
    this.#waiting.delete(token)
    // Without a stream there is an empty message with status 503.
    const answer = JSON.parse(body.length === 0 ? `{"error":{"description":"no stream"}}` : body.toString()) as {
      readonly seq?: number
      readonly duplicate?: boolean
      readonly error?: { readonly description: string }
    }
    resolve?.(
      answer.error !== undefined
        ? { stored: false, reason: answer.error.description }
        : answer.duplicate === true
          ? { stored: false, reason: "duplicate within the broker's window" }
          : { stored: true, seq: answer.seq! },
    )
  }

  #end(reason: string): void {
    this.#ended ??= reason
    for (const resolve of this.#waiting.values()) resolve({ stored: false, reason: this.#ended })
    this.#waiting.clear()
    for (const resolve of this.#pongs.splice(0)) resolve()
  }
}
