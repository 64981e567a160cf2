// A piano, made of sums of decaying partials. Knows Web Audio; knows no pieces and no screen.
//
// A string is stiff, so its partials lie above the multiples of the lowest one (f_n = n f sqrt(1 + B n^2), Fletcher
// 1964); the hammer strikes it at an eighth of its length, so every eighth partial is missing; high partials die first;
// and each key has strings that differ by a hair, of which some ring much longer than others (Weinreich 1977). Soft
// strokes are darker: a low-pass filter over the same sound, which follows the force. The numbers are chosen by us.
"use strict";

const KEYS_A_TONE = 3; // a sound is made for every third key, and played slower or faster for its neighbours
const HIGHEST_DAMPED = 89; // F6: shorter strings have no dampers
const MAX_STRINGS = 160; // at once; beyond that the oldest give way
const MOST_SECONDS = 7; // of a string
const QUIET = 1e-3; // a partial is followed down to here
const LOUD = { share: 0.75, life: 0.3 }, LASTING = { share: 0.25, tuning: 1.0004 }; // the strings of a key

function hertz(pitch) {
  return 440 * 2 ** ((pitch - 69) / 12);
}

// Adds one partial of two strings to `sound`, a loud one and a lasting one: decaying sines,
// y[n] = strength r^n sin(w n), each by its own recurrence, y[n + 1] = 2 r cos(w) y[n] - r^2 y[n - 1].
function addPartial(sound, rate, frequency, strength, seconds) {
  const [loud, lasting] = [
    [frequency, LOUD.share * strength, LOUD.life * seconds],
    [frequency * LASTING.tuning, LASTING.share * strength, seconds],
  ].map(([f, start, life]) => {
    const turn = (2 * Math.PI * f) / rate, decay = Math.exp(-1 / (rate * life));
    return { forward: 2 * decay * Math.cos(turn), back: decay * decay, before: (-start * Math.sin(turn)) / decay };
  });
  let a = 0, b = 0, { before: beforeA } = loud, { before: beforeB } = lasting;
  const last = Math.min(sound.length, Math.ceil(rate * seconds * Math.log((LASTING.share * strength) / QUIET)));
  for (let i = 0; i < last; i++) {
    sound[i] += a + b;
    const nextA = loud.forward * a - loud.back * beforeA, nextB = lasting.forward * b - lasting.back * beforeB;
    beforeA = a;
    beforeB = b;
    a = nextA;
    b = nextB;
  }
}

// The sound of a key that is struck hard and never let go: samples at a rate, about as loud for every key.
function tone(pitch, rate) {
  const lowest = hertz(pitch), life = Math.min(3.2, 1.5 * 2 ** ((60 - pitch) / 14));
  const sound = new Float32Array(Math.ceil(rate * Math.min(MOST_SECONDS, 7 * life)));
  const stiffness = 3.5e-4 * 2 ** ((pitch - 60) / 8.5) + 2e-4 * 2 ** ((21 - pitch) / 8);
  for (let n = 1; n <= 48; n++) {
    const frequency = n * lowest * Math.sqrt((1 + stiffness * n * n) / (1 + stiffness));
    if (frequency > Math.min(12000, 0.45 * rate)) break;
    const strength = (Math.abs(Math.sin((Math.PI * n) / 8)) * Math.exp(-frequency / 5000)) / Math.sqrt(n);
    if (strength * LASTING.share < 2 * QUIET) continue; // the eighth, and those that are far up
    const seconds = life / (1 + 0.25 * (frequency / 1000) ** 1.5);
    addPartial(sound, rate, frequency, strength, seconds);
  }
  addThump(sound, rate);
  let power = 0;
  const heard = Math.min(sound.length, Math.round(0.15 * rate));
  for (let i = 0; i < heard; i++) power += sound[i] * sound[i];
  const gain = 0.2 / Math.sqrt(power / heard), fade = Math.round(0.05 * rate);
  for (let i = 0; i < sound.length; i++) sound[i] *= gain * Math.min(1, (sound.length - i) / fade);
  return sound;
}

// Wood: some hundredths of a second of dull noise, the same each time.
function addThump(sound, rate) {
  const noise = noiseOf(1), length = Math.min(sound.length, Math.round(0.04 * rate));
  for (let i = 0, dull = 0; i < length; i++) {
    dull += 0.15 * (noise() - dull);
    sound[i] += 0.6 * dull * Math.exp(-i / (0.008 * rate));
  }
}

// Numbers from -1 to 1 that only look random: xorshift (Marsaglia 2003).
function noiseOf(seed) {
  let state = seed;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state / 2 ** 31;
  };
}

// Force 0 to 1 -> how loud, and how bright in multiples of the lowest partial.
function loudness(force) {
  return force ** 1.8;
}

function brightness(pitch, force) {
  return 300 + hertz(pitch) * (1 + 20 * force * force);
}

class Piano {
  constructor(context) {
    this.context = context;
    this.tones = new Map(); // pitch -> AudioBuffer, made when first needed
    this.volume = new GainNode(context, { gain: 0.5 });
    const limits = { threshold: -14, knee: 10, ratio: 20, attack: 0.001, release: 0.2 };
    const limiter = new DynamicsCompressorNode(context, limits);
    const room = new ConvolverNode(context, { buffer: this.roomOf(1.1) });
    this.dry = new GainNode(context, { gain: 0.9 });
    this.dry.connect(this.volume);
    this.dry.connect(room).connect(new GainNode(context, { gain: 0.25 })).connect(this.volume);
    this.volume.connect(limiter).connect(context.destination);
    this.hand = null; // all strings since the last hush
  }

  // What a small room does to a sound: noise that dies away.
  roomOf(seconds) {
    const { sampleRate } = this.context, length = Math.round(seconds * sampleRate);
    const room = new AudioBuffer({ numberOfChannels: 2, length, sampleRate });
    for (const [channel, seed] of [[0, 7], [1, 99]]) {
      const noise = noiseOf(seed), samples = room.getChannelData(channel);
      for (let i = 0; i < length; i++) samples[i] = noise() * Math.exp((-6 * i) / length);
    }
    return room;
  }

  toneNear(pitch) {
    const key = Math.min(108, Math.max(21, Math.round(pitch / KEYS_A_TONE) * KEYS_A_TONE));
    if (!this.tones.has(key)) {
      const { sampleRate } = this.context, samples = tone(key, sampleRate);
      const buffer = new AudioBuffer({ length: samples.length, sampleRate });
      buffer.copyToChannel(samples, 0);
      this.tones.set(key, buffer);
    }
    return [this.tones.get(key), 2 ** ((pitch - key) / 12)];
  }

  // Makes the sounds that notes take, which for each new one is tens of milliseconds of work.
  prepare(notes) {
    for (const { pitch } of notes) this.toneNear(pitch);
  }

  // Lets a note sound from `when` of the context's time on, `sounded` seconds into it.
  strike({ onset, end, pitch, velocity }, when, sounded = 0) {
    const { context } = this, [buffer, speed] = this.toneNear(pitch), force = velocity / 127;
    if (sounded * speed >= buffer.duration) return;
    this.hand ??= { out: this.newHand(), strings: new Set() };
    const hand = this.hand;
    const string = new AudioBufferSourceNode(context, { buffer, playbackRate: speed });
    const frequency = Math.min(brightness(pitch, force), 0.45 * context.sampleRate);
    const filter = new BiquadFilterNode(context, { type: "lowpass", frequency, Q: -3 });
    const level = new GainNode(context, { gain: loudness(force) });
    const place = new StereoPannerNode(context, { pan: Math.min(0.5, Math.max(-0.5, (pitch - 64) / 80)) });
    string.connect(filter).connect(level).connect(place).connect(hand.out);
    if (sounded) level.gain.setValueAtTime(0, when).linearRampToValueAtTime(loudness(force), when + 0.02);
    string.start(when, sounded * speed);
    if (pitch <= HIGHEST_DAMPED) {
      const silence = Math.max(when + (end - onset) - sounded, when + 0.03), damping = 0.04 + 0.06 * (1 - pitch / 127);
      level.gain.setTargetAtTime(0, silence, damping);
      string.stop(silence + 8 * damping);
    }
    hand.strings.add(string);
    string.onended = () => {
      hand.strings.delete(string);
      place.disconnect();
    };
    if (hand.strings.size > MAX_STRINGS) {
      const [oldest] = hand.strings;
      hand.strings.delete(oldest);
      oldest.stop(when);
    }
  }

  newHand() {
    const out = new GainNode(this.context);
    out.connect(this.dry);
    return out;
  }

  // All strings are damped now, and what was to begin later never does.
  hush() {
    if (!this.hand) return;
    const { out, strings } = this.hand, now = this.context.currentTime;
    this.hand = null;
    out.gain.setTargetAtTime(0, now, 0.015);
    for (const string of strings) string.stop(now + 0.3);
    setTimeout(() => out.disconnect(), 600);
  }
}
