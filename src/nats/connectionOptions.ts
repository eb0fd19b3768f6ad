/** How the connections of this program are made: a server list as options of the client library, the same for all of them. */
import type { NodeConnectionOptions, TlsOptions } from "@nats-io/transport-node"
import { Result } from "effect"
import { checkServerIdentity, type ConnectionOptions, type PeerCertificate, type TLSSocket } from "node:tls"

/** What is wrong with an item of a server list. */
export interface ServerProblem {
  readonly index: number
  readonly allowed: string
}

/** A server list, read. */
interface Servers {
  readonly hosts: ReadonlyArray<string>
  /** Of all servers: the library has one login for a connection. */
  readonly credentials: NodeConnectionOptions
  readonly tls: boolean
}

const serverAllowed = "host:port, nats://host:port or tls://host:port, several parted by commas"
const escapesAllowed = "a user, password or token in which % begins an escape, itself as %25"
const loginAllowed = "the same user and password, or token, for all servers"

/** `undefined` where a % doesn't begin an escape. */
const decoded = (text: string): string | undefined => {
  try {
    return decodeURIComponent(text)
  } catch {
    return undefined
  }
}

/** Reads a comma-separated server list, with credentials where it has some. */
export const readServers = (list: string): Result.Result<Servers, ServerProblem> => {
  const hosts: Array<string> = []
  let credentials: NodeConnectionOptions = {}
  let login: string | undefined
  let tls = false
  for (const [index, item] of list.split(",").entries()) {
    const text = item.trim()
    const url = URL.parse(text.includes("://") ? text : `nats://${text}`)
    const isServer = url !== null && url.hostname !== "" && /^(?:nats|tls):$/.test(url.protocol)
    if (!isServer || !/^\/?$/.test(url.pathname) || url.search !== "" || url.hash !== "") {
      return Result.fail({ index, allowed: serverAllowed })
    }
    const [user, pass] = [decoded(url.username), decoded(url.password)]
    if (user === undefined || pass === undefined) return Result.fail({ index, allowed: escapesAllowed })
    if (user !== "") {
      const own = `${url.username}:${url.password}`
      if (login !== undefined && login !== own) return Result.fail({ index, allowed: loginAllowed })
      login = own
      credentials = pass === "" ? { token: user } : { user, pass }
    }
    hosts.push(url.host)
    tls ||= url.protocol === "tls:"
  }
  return Result.succeed({ hosts, credentials, tls })
}

/**
 * Checks a certificate against the server that was asked for. The library gives an address no name, and then Node asks for a
 * certificate of "localhost". Node calls this on the options of the TLS connection, which the library lets through.
 */
const tlsOptions: TlsOptions & Pick<ConnectionOptions, "checkServerIdentity"> = {
  checkServerIdentity(this: ConnectionOptions, name: string, certificate: PeerCertificate) {
    const { servername, socket } = this
    const address = servername === "" ? (socket as TLSSocket | undefined)?.remoteAddress : undefined
    return checkServerIdentity(address ?? name, certificate)
  },
}

/** How long one server may take to answer, and when a connection without any sign is taken for dead: after three of these. */
const connectTimeoutMillis = 2_000
const pingIntervalMillis = 10_000

/** From one attempt to connect again to the next. */
const reconnectMillis = { wait: 250, jitter: 100 }

/**
 * Options of a connection that is made again whenever it is lost, without end: who has less patience closes it. `servers`
 * was read by `readServers` before; `name` is what the server calls the connection.
 */
export const connectionOptions = (servers: string, name: string): NodeConnectionOptions => {
  const { credentials, hosts, tls } = Result.getOrThrow(readServers(servers))
  return {
    servers: [...hosts],
    ...credentials,
    ...(tls ? { tls: tlsOptions } : {}),
    name,
    // Otherwise the second login that is refused, however long after the first, closes the connection for good.
    ignoreAuthErrorAbort: true,
    maxReconnectAttempts: -1,
    reconnectTimeWait: reconnectMillis.wait,
    reconnectJitter: reconnectMillis.jitter,
    reconnectJitterTLS: reconnectMillis.jitter,
    pingInterval: pingIntervalMillis,
    timeout: connectTimeoutMillis,
  }
}

/** The servers as they may be shown: without credentials. */
export const shownServers = (servers: string): string =>
  Result.match(readServers(servers), { onSuccess: ({ hosts }) => hosts.join(", "), onFailure: () => "" })
