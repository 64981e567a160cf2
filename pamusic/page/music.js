// What travels in the page -> notes and pedal movements; and where in them the playing is.
// Knows numbers alone: no sound, no screen, no clock of its own. Times are seconds.
"use strict";

const LAST_MOMENT = 0.25; // so near to the end, playing begins anew
const ROWS_OF_NOTES = 5, ROWS_OF_PEDAL = 3; // numbers a row, as document.py packs them

// Whole numbers of seven bits a byte, the lowest first, the last byte of each below 128.
function unpacked(base64) {
  const numbers = [];
  let number = 0, place = 1;
  for (const byte of Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))) {
    number += (byte & 127) * place;
    place *= 128;
    if (byte < 128) {
      numbers.push(number);
      number = 0;
      place = 1;
    }
  }
  return numbers;
}

// {onset, offset, end, pitch, velocity} each, by onset: the key is up at `offset`, the string silent at `end`.
function notesOf(base64) {
  const numbers = unpacked(base64), notes = [];
  for (let i = 0, now = 0; i < numbers.length; i += ROWS_OF_NOTES) {
    const [later, key, sound, pitch, velocity] = numbers.slice(i, i + ROWS_OF_NOTES);
    now += later;
    notes.push({ onset: now / 1000, offset: (now + key) / 1000, end: (now + sound) / 1000, pitch, velocity });
  }
  return notes;
}

// {time, control, value} each, by time.
function pedalOf(base64) {
  const numbers = unpacked(base64), moves = [];
  for (let i = 0, now = 0; i < numbers.length; i += ROWS_OF_PEDAL) {
    now += numbers[i];
    moves.push({ time: now / 1000, control: numbers[i + 1], value: numbers[i + 2] });
  }
  return moves;
}

// The place of the first note that begins at a second or later.
function firstFrom(notes, second) {
  let low = 0, high = notes.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (notes[middle].onset < second) low = middle + 1;
    else high = middle;
  }
  return low;
}

function clockTime(seconds) {
  const whole = Math.floor(seconds), minutes = Math.floor(whole / 60);
  const rest = String(whole % 60).padStart(2, "0");
  if (minutes < 60) return `${minutes}:${rest}`;
  return `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${rest}`;
}

// Where the playing is, and which notes are due.
//
// Every note is handed on ahead of time, with the very instant of the audio clock at which it begins, so nothing adds
// up to a drift, however late a tick comes: at most `ahead` seconds, which is longer than browsers let timers of
// hidden pages sleep. A note that is due already when it is handed on is begun as far in as it should be.
class Timeline {
  // clock(): seconds, from any zero.
  // prepare(notes): these come at once; it may take its time, for the clock is read after it.
  // strike(note, when, sounded): let it sound from `when` of the clock on, `sounded` seconds into it.
  // hush(): let all be silent, and nothing begin that was handed on.
  constructor(notes, seconds, { clock, prepare, strike, hush, ahead = 2.5, delay = 0.1, ringOut = 2 }) {
    Object.assign(this, { notes, seconds, clock, prepare, strike, hush, ahead, delay, ringOut });
    this.zero = null; // when second 0 of the music was, or would have been, on the clock; null while it rests
    this.at = 0; // where it rests, or where it went on from
    this.next = 0; // the first note that was not handed on
  }

  get isPlaying() {
    return this.zero !== null;
  }

  // `latency`: how long the clock's now takes to be heard.
  position(latency = 0) {
    if (!this.isPlaying) return this.at;
    return Math.min(Math.max(this.clock() - this.zero - latency, this.at), this.seconds);
  }

  play() {
    if (this.isPlaying) return;
    if (this.at > this.seconds - LAST_MOMENT) this.at = 0;
    this.next = firstFrom(this.notes, this.at);
    const sounding = this.notes.slice(0, this.next).filter((note) => note.end > this.at);
    this.prepare([...sounding, ...this.notes.slice(this.next, firstFrom(this.notes, this.at + this.ahead))]);
    const start = this.clock() + this.delay;
    this.zero = start - this.at;
    for (const note of sounding) this.strike(note, start, this.at - note.onset);
    this.tick();
  }

  // Hands on what begins soon; to be called several times a second. False where all has been played.
  tick() {
    if (!this.isPlaying) return false;
    const now = this.clock();
    for (; this.next < this.notes.length; this.next++) {
      const note = this.notes[this.next], when = this.zero + note.onset;
      if (when > now + this.ahead) break;
      const sounded = Math.max(0, now - when);
      if (note.onset + sounded < note.end) this.strike(note, when + sounded, sounded);
    }
    if (now - this.zero < this.seconds + this.ringOut) return true;
    this.stop();
    return false;
  }

  pause() {
    if (!this.isPlaying) return;
    this.at = this.position();
    this.zero = null;
    this.hush();
  }

  stop() {
    this.pause();
    this.at = 0;
  }

  seek(second) {
    const wasPlaying = this.isPlaying;
    this.pause();
    this.at = Math.min(Math.max(second, 0), this.seconds);
    if (wasPlaying && this.at < this.seconds) this.play();
  }
}
