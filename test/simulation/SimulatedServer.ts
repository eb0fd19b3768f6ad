/**
 * A server as the wire sees it: one stream with one pull consumer, spoken to in the client protocol, over a socket that cuts what it
 * brings anywhere. `wire.test.ts` puts the program's own `nats/` and the receiving half of `broker/` on it.
 */
import type { NatsConnection } from "@nats-io/transport-node"
import { Buffer } from "node:buffer"
import { ackWaitMillis } from "../../src/broker/intakeLimits.ts"
import type { Prng } from "./Prng.ts"

interface PullRequest {
  readonly reply: string
  readonly expiresAt: number
  readonly heartbeatMillis: number
  heartbeatAt: number
  left: number
}

interface UnderWay {
  readonly count: number
  deadline: number
}

export class SimulatedServer {
  readonly #prng: Prng
  /** Of the stream that is there: another one after it was made again. */
  life = 1
  readonly #published: Array<string> = []
  /** By sequence number, of the present life. */
  #acknowledged = new Set<number>()
  #underWay = new Map<number, UnderWay>()
  /** To be delivered again, and from when on. */
  #again: Array<{ readonly seq: number; readonly at: number }> = []
  #counts = new Map<number, number>()
  #next = 1
  #hasConsumer = false
  #requests: Array<PullRequest> = []
  #sid = 0
  #inbox = ""
  #socket = ""
  isConnected = true
  /** Takes nothing and says nothing until then, Unix milliseconds. */
  silentUntil = 0
  readonly violations: Array<string> = []
  /** What the client has been given and has looked at, as `<life>:<seq>`. */
  readonly handled = new Set<string>()
  /** The client's inside: its parser is replaced by the program's. */
  readonly protocol = {
    parser: { parse: (_bytes: Uint8Array): void => undefined },
    sendCommand: (...parts: ReadonlyArray<Uint8Array>): void => this.#receive(Buffer.concat(parts).toString("latin1")),
  }

  constructor(prng: Prng) {
    this.#prng = prng
  }

  get isSilent(): boolean {
    return Date.now() < this.silentUntil
  }

  get isReachable(): boolean {
    return this.isConnected && !this.isSilent
  }

  /** The connection as far as the program uses it for deliveries. */
  readonly connection = {
    protocol: this.protocol,
    info: { max_payload: 1_000_000 },
    isClosed: () => false,
    subscribe: (subject: string) => {
      const sid = ++this.#sid
      this.#inbox = subject
      return { getID: () => sid, drain: async () => undefined, unsubscribe: () => undefined }
    },
    publish: (_subject: string, body: string, { reply }: { readonly reply: string }) => this.#pull(reply, body),
    request: async () => undefined,
  } as unknown as NatsConnection

  publish(): void {
    this.#published.push(`${this.life}:${this.#published.length + 1}`)
  }

  /** Makes the consumer where it is missing: it delivers what is not done. */
  provision(): void {
    if (this.#hasConsumer) return
    this.#hasConsumer = true
    this.#underWay.clear()
    this.#again = []
    this.#next = 1
  }

  deleteConsumer(): void {
    this.#hasConsumer = false
    for (const { reply } of this.#requests.splice(0)) this.#status(reply, "409 Consumer Deleted")
  }

  /** The stream is deleted, and made again by whoever needs it: what was in it is gone. */
  makeAgain(): void {
    this.life++
    this.#published.length = 0
    this.#acknowledged = new Set()
    this.#underWay = new Map()
    this.#counts = new Map()
    this.deleteConsumer()
  }

  disconnect(): void {
    this.isConnected = false
    this.#requests = []
    this.#socket = ""
  }

  reconnect(): void {
    this.isConnected = true
    // The client library has a new parser for each connection.
    this.protocol.parser = { parse: () => undefined }
  }

  /** What the stream holds and nobody has acknowledged. */
  get open(): ReadonlyArray<string> {
    return this.#published.filter((_, index) => !this.#acknowledged.has(index + 1))
  }

  /** What happens as time goes by. */
  tick(): void {
    const now = Date.now()
    for (const [seq, { deadline }] of this.#underWay) {
      if (deadline > now) continue
      this.#underWay.delete(seq)
      this.#again.push({ seq, at: now })
    }
    for (const request of this.#requests) {
      if (request.expiresAt <= now) {
        this.#status(request.reply, `408 Request Timeout\r\nNats-Pending-Messages: ${request.left}`)
        request.left = 0
      } else if (request.heartbeatAt <= now) {
        request.heartbeatAt = now + request.heartbeatMillis
        this.#status(request.reply, "100 Idle Heartbeat")
      }
    }
    this.#requests = this.#requests.filter(({ left }) => left > 0)
    if (this.#hasConsumer && this.isReachable) this.#deliver(now)
    this.#flush()
  }

  #pull(reply: string, body: string): void {
    if (!this.isReachable) return
    if (!this.#hasConsumer) return this.#status(reply, "503")
    const { batch, expires, idle_heartbeat } = JSON.parse(body) as Readonly<Record<string, number>>
    const now = Date.now()
    const heartbeatMillis = idle_heartbeat! / 1e6
    this.#requests.push({
      reply,
      left: batch!,
      expiresAt: now + expires! / 1e6,
      heartbeatMillis,
      heartbeatAt: now + heartbeatMillis,
    })
  }

  #deliver(now: number): void {
    for (const request of this.#requests) {
      while (request.left > 0) {
        const seq = this.#nextSeq(now)
        if (seq === undefined) return
        const count = (this.#counts.get(seq) ?? 0) + 1
        this.#counts.set(seq, count)
        this.#underWay.set(seq, { count, deadline: now + ackWaitMillis })
        request.left--
        request.heartbeatAt = now + request.heartbeatMillis
        const reply = `$JS.ACK.S.C.${count}.${seq}.${seq}.${1_763_900_000_000_000_000n + BigInt(seq)}.0`
        this.#write("logs", reply, "", this.#published[seq - 1]!)
      }
    }
  }

  #nextSeq(now: number): number | undefined {
    const at = this.#again.findIndex((each) => each.at <= now && !this.#acknowledged.has(each.seq))
    if (at >= 0) return this.#again.splice(at, 1)[0]!.seq
    while (this.#next <= this.#published.length && this.#acknowledged.has(this.#next)) this.#next++
    return this.#next <= this.#published.length ? this.#next++ : undefined
  }

  #status(reply: string, text: string): void {
    this.#write(reply, undefined, `NATS/1.0 ${text}\r\n\r\n`, "")
  }

  #write(subject: string, reply: string | undefined, headers: string, payload: string): void {
    if (!this.isReachable || this.#inbox === "") return
    const words = [headers === "" ? "MSG" : "HMSG", subject, String(this.#sid), ...(reply === undefined ? [] : [reply])]
    const sizes = headers === "" ? [payload.length] : [headers.length, headers.length + payload.length]
    this.#socket += `${[...words, ...sizes].join(" ")}\r\n${headers}${payload}\r\n`
  }

  /** Hands on what was written, in pieces that end anywhere; sometimes the last one comes with the next look. */
  #flush(): void {
    const all = this.#socket
    this.#socket = ""
    let from = 0
    while (from < all.length) {
      const to = from + 1 + this.#prng.below(all.length - from)
      if (to < all.length && this.#prng.below(10) === 0) {
        this.#socket = all.slice(from)
        return
      }
      const piece = Buffer.from(all.slice(from, to), "latin1")
      this.protocol.parser.parse(piece)
      piece.fill(0)
      from = to
    }
  }

  /** Acknowledgements, as `Outgoing` writes them. */
  #receive(text: string): void {
    // Without its consumer an acknowledgement reaches nobody.
    if (!this.isReachable || !this.#hasConsumer) return
    for (const [, subject, answer] of text.matchAll(/PUB (\S+) \d+\r\n([^\r]*)\r\n/g)) {
      const seq = Number(subject!.split(".")[5])
      const at = this.#underWay.get(seq)
      if (at === undefined) continue
      if (answer === "+ACK") {
        if (!this.handled.has(`${this.life}:${seq}`)) {
          this.violations.push(`${seq} of life ${this.life} was acknowledged before anybody saw it`)
        }
        this.#acknowledged.add(seq)
        this.#underWay.delete(seq)
      } else if (answer === "+WPI") at.deadline = Date.now() + ackWaitMillis
      else {
        this.#underWay.delete(seq)
        const { delay } = JSON.parse(answer!.slice("-NAK ".length)) as { readonly delay: number }
        this.#again.push({ seq, at: Date.now() + delay / 1e6 })
      }
    }
  }
}
