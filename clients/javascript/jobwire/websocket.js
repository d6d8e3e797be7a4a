/** All jobs over one WebSocket. */
import {Connection, reasonOf} from "./connection.js";
import {ConnectionFailed, Cut, NoKey} from "./errors.js";
import {keyOf, renews} from "./options.js";
import {Retry, STABLE_MS} from "./retry.js";
import {Changes, sleep} from "./waiting.js";
import {CONNECT_TIMEOUT_MS} from "./wire.js";

const DROPPED = 4000; // close code of this side

/**
 * All jobs over one WebSocket, which is opened when a job needs it, and again after a cut. After a goaway there may be a
 * second one: the old one carries its jobs to their end, or to its own.
 */
export class WebSocketTransport {
  name = "websocket";
  #settings;
  #subscriptions;
  #fallBack;
  #retry;
  #connections = [];
  #wanted = new Changes();
  #closing = new AbortController();

  constructor(settings, subscriptions, fail, fallBack) {
    this.#settings = settings;
    this.#subscriptions = subscriptions;
    this.#fallBack = fallBack;
    this.#retry = new Retry(settings);
    this.#run().catch(fail);
  }

  notify(subscription) {
    const connection = this.#carrier(subscription) ?? this.#current;
    if (connection) connection.notify(subscription);
    else this.#wanted.tell();
  }

  reconnect() {
    for (const connection of [...this.#connections]) connection.lose(reasonOf(DROPPED, "Dropped by the program"));
  }

  close() {
    this.#closing.abort(new ConnectionFailed("The client is closed", "closed"));
    this.reconnect();
  }

  /** The connection that takes new jobs. */
  get #current() {
    return this.#connections.find((connection) => connection.takesJobs);
  }

  #carrier(subscription) {
    return this.#connections.find(({jobs}) => jobs.get(subscription.id) === subscription);
  }

  get #homeless() {
    return [...this.#subscriptions.values()].filter((subscription) => !this.#carrier(subscription));
  }

  /** Connect when a job needs it, and again when the connection takes nothing new. Rejects when that is of no use. */
  async #run() {
    for (;;) {
      while (!this.#homeless.length) await this.#wanted.wait();
      const reason = await this.#connect().then((connection) => this.#adopt(connection)).catch((failure) => failure);
      this.#closing.signal.throwIfAborted();
      if (await this.#isBlocked(reason)) return this.#fallBack();
      if (!(reason instanceof Cut)) throw reason;
      await sleep(this.#retry.delayMs(reason, reason.retryMs), this.#closing.signal);
    }
  }

  /** Connect, with another key where the first one is refused. Rejects with Cut, ConnectionFailed. */
  async #connect() {
    return this.#dial().catch((failure) => {
      if (!this.#isWorthAnotherKey(failure)) throw failure;
      return this.#dial();
    });
  }

  #isWorthAnotherKey(reason) {
    return renews(this.#settings) && reason.code === "unauthorized";
  }

  async #dial() {
    const key = await keyOf(this.#settings);
    this.#closing.signal.throwIfAborted();
    const connection = new Connection(key, this.#settings, this.#subscriptions, this.#retry);
    this.#connections.push(connection);
    connection.ended.then(() => this.#left(connection));
    await connection.greeted;
    return connection;
  }

  /** Give a new connection the jobs that have none; resolves when it takes no more, to the reason. */
  async #adopt(connection) {
    this.#fallBack = null; // WebSockets work here
    for (const subscription of this.#homeless) connection.notify(subscription);
    const reason = await connection.gone;
    if (connection.lastedMs > STABLE_MS) this.#retry.clear();
    return this.#isWorthAnotherKey(reason) ? new Cut(reason.message) : reason;
  }

  /** A connection has ended: its jobs need another one. */
  #left(connection) {
    this.#connections.splice(this.#connections.indexOf(connection), 1);
    for (const subscription of connection.jobs.values()) {
      subscription.detach();
      this.#subscriptions.forgetIfOver(subscription);
    }
    this.#wanted.tell();
    for (const subscription of this.#homeless) this.#current?.notify(subscription);
  }

  /** Whether the worker is there, though no WebSocket ever got through to it. */
  async #isBlocked(reason) {
    // A close code shows that WebSockets get through, and without a key nothing was tried.
    if (!this.#fallBack || !(reason instanceof Cut) || reason instanceof NoKey || reason.closeCode) return false;
    try {
      const signal = AbortSignal.timeout(CONNECT_TIMEOUT_MS);
      return (await this.#settings.fetch(`${this.#settings.base}/`, {signal})).ok && !this.#closing.signal.aborted;
    } catch {
      return false;
    }
  }
}
