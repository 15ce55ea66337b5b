//! Instructions that both training and serving use: what a model is asked in order to draw, to
//! speak and to write down. The first wording of each language is the one that the server uses.

use serde_json::{Value, json};

/// English wordings of "draw this"; `{}` is the name.
pub const DRAW_EN: [&str; 4] = ["Draw {}", "A picture of {}", "Show me {}", "Paint {}"];
/// Chinese wordings of the same.
pub const DRAW_ZH: [&str; 3] = ["画{}", "请画一个{}", "给我看{}"];
/// English wordings of "say this"; `{}` is the text.
pub const SPEAK_EN: [&str; 4] = ["Say “{}”", "Read “{}” aloud", "Speak: “{}”", "Pronounce “{}”"];
/// Chinese wordings of the same.
pub const SPEAK_ZH: [&str; 3] = ["读“{}”", "说“{}”", "朗读“{}”"];
/// English wordings of "write down what is said".
pub const TRANSCRIBE_EN: [&str; 4] =
    ["Write what you hear.", "Transcribe this.", "What is said?", "Write this down."];
/// Chinese wordings of the same.
pub const TRANSCRIBE_ZH: [&str; 3] = ["写下你听到的。", "听写。", "说的是什么？"];

/// Whether a text is mostly read as Chinese: it has a CJK ideograph.
fn chinese(text: &str) -> bool {
    text.chars().any(|c| ('\u{4E00}'..='\u{9FFF}').contains(&c))
}

/// Asks for a picture of what has this name.
pub fn draw(name: &str) -> String {
    let wording = if chinese(name) { DRAW_ZH[0] } else { DRAW_EN[0] };
    wording.replace("{}", name)
}

/// Asks for a text to be said, if wanted in a voice by name.
pub fn speak(text: &str, voice: Option<&str>) -> String {
    let wording = if chinese(text) { SPEAK_ZH[0] } else { SPEAK_EN[0] };
    let asked = wording.replace("{}", text);
    voice.map_or_else(|| asked.clone(), |voice| in_voice(&asked, voice))
}

/// Names the voice at the end of an instruction.
pub fn in_voice(instruction: &str, voice: &str) -> String {
    if chinese(instruction) {
        format!("{instruction}，{voice}声音")
    } else {
        format!("{instruction} in the {voice} voice")
    }
}

/// Asks for what is said. `language` is a code of ISO 639, with or without a region: in Chinese for one of
/// China's, otherwise in English, as recordings of other languages are asked about in training.
pub fn transcribe(language: Option<&str>) -> &'static str {
    let code = language.and_then(|l| l.split(['-', '_']).next()).unwrap_or_default();
    let zh = ["zh", "zho", "chi", "cmn", "yue"].iter().any(|c| code.eq_ignore_ascii_case(c));
    if zh { TRANSCRIBE_ZH[0] } else { TRANSCRIBE_EN[0] }
}

/// Tells of tools to a model that was taught no words for them.
pub fn tools(tools: &[Value]) -> String {
    let functions: Vec<&Value> = tools.iter().map(|t| t.get("function").unwrap_or(t)).collect();
    format!(
        "Tools: {}\nTo call one, reply with JSON alone: {{\"name\": ..., \"arguments\": {{...}}}}",
        json!(functions)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_language_of_the_words_is_the_language_of_the_instruction() {
        assert_eq!((draw("cat face"), draw("猫")), ("Draw cat face".into(), "画猫".into()));
        assert_eq!(speak("hi", Some("en-us")), "Say “hi” in the en-us voice");
        assert_eq!(speak("你好", None), "读“你好”");
        for zh in ["zh", "ZH-CN", "cmn", "zh_TW"] {
            assert_eq!(transcribe(Some(zh)), "写下你听到的。");
        }
        assert!([None, Some("fr"), Some("zhx")].map(transcribe).iter().all(|t| t.is_ascii()));
    }
}
