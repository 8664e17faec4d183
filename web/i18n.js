// Every word of the page, in English and Chinese.

const WORDS = {
  en: {
    title: "Is this face real?",
    lead: "Drop a picture. Unmask estimates how likely it is a deepfake, and shows where the model looked.",
    dropTitle: "Drop a picture here",
    dropOr: "or paste it from the clipboard, or",
    choose: "Choose a picture",
    another: "Check another picture",
    limits: "JPEG, PNG, WebP, AVIF, GIF, BMP or TIFF, up to 20 MB. One face that fills the picture works best.",
    waiting: "Looking at the picture…",
    fake: "Likely fake",
    real: "Likely real",
    uncertain: "Cannot tell",
    probability: "calibrated probability of a fake",
    below: "below {bound}",
    between: "{low} to {high}",
    above: "{bound} and above",
    barLabel: "Probability of a fake: {percent}. Likely real below {low}, likely fake from {high}.",
    meaning: "Among test pictures with a figure near {percent}, about that share was fake. It is an estimate from one model, no proof: it can miss "
      + "forgeries of a kind it was never shown, so weigh it with where the picture comes from.",
    map: "Attention map",
    mapLow: "less",
    mapHigh: "more",
    mapWaiting: "The attention map is being computed…",
    mapNote: "Where the model looked. Bright places counted most; that is no proof that they were altered.",
    mapFailed: "There is no attention map for this picture.",
    noPreview: "The browser cannot show this format. The verdict is not affected.",
    details: "Model and request",
    version: "Model version",
    run: "Training run",
    data: "Data (MD5)",
    commit: "Code (git)",
    request: "Request",
    time: "Time",
    milliseconds: "{value} ms",
    modelChip: "Model version {version}",
    privacy: "The picture is judged in memory and not stored. The score and a numeric summary are kept to notice when traffic changes.",
    programs: "For programs:",
    aboutModel: "About the model",
    copy: "Copy",
    copied: "Copied",
    noModelTitle: "No model is served yet",
    noModelText: "If none was promoted, this command trains, checks and promotes the first one. The page goes on by itself as soon as a model is served.",
    warning_too_small: "The picture is very small, so little is left to judge. Use the original in full size.",
    warning_too_blurry: "The picture is blurred. Use a sharper original, not a screenshot or a forwarded copy.",
    warning_too_dark: "The picture is very dark. Use one with more light on the face.",
    error_not_an_image: "This file is not a picture that can be read.",
    hint_not_an_image: "Use JPEG, PNG or WebP.",
    error_truncated: "The picture is damaged or cut off.",
    hint_truncated: "Save or download it again.",
    error_empty: "The file is empty.",
    hint_empty: "Choose a picture.",
    error_too_large: "The file is larger than 20 MB.",
    hint_too_large: "Use a smaller one.",
    error_too_many_pixels: "The picture has more than 50 million pixels.",
    hint_too_many_pixels: "Scale it down first.",
    error_timeout: "It took too long.",
    hint_timeout: "Try again in a moment.",
    error_network: "The service does not answer.",
    hint_network: "Check that it is running, then try again.",
    error_other: "That did not work.",
    hint_other: "Try again. The log of the service says more.",
  },
  zh: {
    title: "这张脸是真的吗？",
    lead: "放入一张图片，Unmask 会估计它是深度伪造的可能性，并显示模型看了哪里。",
    dropTitle: "将图片拖到这里",
    dropOr: "也可以从剪贴板粘贴，或者",
    choose: "选择图片",
    another: "再检查一张",
    limits: "支持 JPEG、PNG、WebP、AVIF、GIF、BMP、TIFF，最大 20 MB。单张人脸占满画面时效果最好。",
    waiting: "正在查看图片……",
    fake: "可能是伪造",
    real: "可能是真实",
    uncertain: "无法判断",
    probability: "伪造的校准概率",
    below: "低于 {bound}",
    between: "{low} 至 {high}",
    above: "{bound} 及以上",
    barLabel: "伪造概率 {percent}。低于 {low} 为可能真实，{high} 及以上为可能伪造。",
    meaning: "在测试图片中，得分接近 {percent} 的图片里大约有这个比例是伪造的。这只是一个模型的估计，不是证据：它可能漏掉从未见过的伪造手法，请结合图片来源一起判断。",
    map: "注意力图",
    mapLow: "少",
    mapHigh: "多",
    mapWaiting: "正在计算注意力图……",
    mapNote: "模型看了哪里。明亮之处影响最大，但这不能证明该处被修改过。",
    mapFailed: "这张图片没有注意力图。",
    noPreview: "浏览器无法显示此格式，判断结果不受影响。",
    details: "模型与请求",
    version: "模型版本",
    run: "训练运行",
    data: "数据（MD5）",
    commit: "代码（git）",
    request: "请求",
    time: "用时",
    milliseconds: "{value} 毫秒",
    modelChip: "模型版本 {version}",
    privacy: "图片只在内存中判断，不会保存。系统只保留得分和数值摘要，用来察觉流量变化。",
    programs: "供程序调用：",
    aboutModel: "关于模型",
    copy: "复制",
    copied: "已复制",
    noModelTitle: "尚无模型可用",
    noModelText: "如果还没有发布过模型，运行下面的命令即可训练、检验并发布第一个。模型上线后，本页会自动继续。",
    warning_too_small: "图片太小，可供判断的信息很少。请使用原始尺寸的图片。",
    warning_too_blurry: "图片模糊。请使用更清晰的原图，而不是截图或转发的副本。",
    warning_too_dark: "图片太暗。请使用脸部光线更充足的图片。",
    error_not_an_image: "无法将此文件读取为图片。",
    hint_not_an_image: "请使用 JPEG、PNG 或 WebP。",
    error_truncated: "图片已损坏或不完整。",
    hint_truncated: "请重新保存或下载。",
    error_empty: "文件是空的。",
    hint_empty: "请选择一张图片。",
    error_too_large: "文件超过 20 MB。",
    hint_too_large: "请使用较小的文件。",
    error_too_many_pixels: "图片超过 5000 万像素。",
    hint_too_many_pixels: "请先缩小图片。",
    error_timeout: "处理时间过长。",
    hint_timeout: "请稍后再试。",
    error_network: "服务没有响应。",
    hint_network: "请确认服务正在运行，然后重试。",
    error_other: "操作没有成功。",
    hint_other: "请重试。服务日志中有更多信息。",
  },
};

const KEY = "unmask-language";
let language = WORDS[localStorage.getItem(KEY)] ? localStorage.getItem(KEY) : navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";

/** Whether there is a text of this name. */
export const has = (name) => name in WORDS.en;

/** The text of this name in the page's language, with {placeholders} filled in. */
export function text(name, values = {}) {
  return WORDS[language][name].replace(/\{(\w+)\}/g, (_, key) => values[key]);
}

/** Put the page's language into every element that names a text. */
export function translate() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-i18n]")) element.textContent = text(element.dataset.i18n);
  for (const button of document.querySelectorAll("[data-language]")) {
    button.setAttribute("aria-pressed", String(button.dataset.language === language));
  }
}

/** Change the language, and remember it in this browser. */
export function speak(chosen) {
  language = chosen;
  localStorage.setItem(KEY, chosen);
  translate();
}
